"""Imports point downward, the receiver stays small, and what a page promises is there."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = [
    {"errors"},
    {
        "records",
        "config",
        "audit",
        "attributes.identity",
        "attributes.quiet",
        "network.status",
        "service.notify",
    },
]
FOUNDATION = set().union(*LAYERS)
TOP = {"cli", "__main__"}
MEASURED = {"losses", "speckle", "student", "teacher"}
MEASURED_PACKAGES = {"network", "simulation"}
"""What the evaluation judges, or judges on."""
GROUND = ("metrics", "network", "simulation")
"""Packages whose modules import nothing of the model but each other."""
EDGE_OF_DICOM_ONLY = {"send", "commit", "network.query", "network.associate"}


def modules(package: str) -> dict[str, Path]:
    return {
        name_of(path.relative_to(ROOT / package)): path
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def name_of(path: Path) -> str:
    """Dotted name below the package; a folder's ``__init__`` is the folder."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(path: Path) -> set[str]:
    """Everything that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def internal(path: Path, package: str = "dicom_node") -> set[str]:
    """Modules of the package that a module imports, also inside functions."""
    names = set(modules(package))
    parts = {name.removeprefix(f"{package}.") for name in imports_of(path)}
    return {part for part in parts if part in names and part != "__init__"}


def at_top_level(path: Path, package: str = "dicom_node") -> set[str]:
    """What importing the module imports of the package."""
    names = set(modules(package))
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {part for name in found if (part := name.removeprefix(f"{package}.")) in names}


def reached_from(name: str, package: str) -> set[str]:
    """Modules of the package that a module imports, and those that these import."""
    reached: set[str] = set()
    waiting = [name]
    while waiting:
        found = internal(modules(package)[waiting.pop()], package) - reached
        reached |= found
        waiting += found
    return reached


@pytest.mark.parametrize("path", modules("model").values(), ids=modules("model"))
def test_model_never_imports_the_node(path):
    assert not {name for name in imports_of(path) if name.split(".")[0] == "dicom_node"}


@pytest.mark.parametrize("name", modules("dicom_node"))
def test_only_despeckle_imports_torch_or_the_model(name):
    """Pictures for people are shared, and need neither."""
    imported = imports_of(modules("dicom_node")[name])
    heavy = {each.split(".")[0] for each in imported if not each.startswith("model.pictures")}
    assert name == "despeckle" or not heavy & {"torch", "model"}


def test_pictures_import_neither_torch_nor_the_model():
    imported = {each.split(".")[0] for each in imports_of(modules("model")["pictures"])}
    assert not imported & {"torch", "model"}


@pytest.mark.parametrize("name", sorted(FOUNDATION & set(modules("dicom_node"))))
def test_the_foundation_imports_only_itself(name):
    assert internal(modules("dicom_node")[name]) <= FOUNDATION


@pytest.mark.parametrize("name", sorted(EDGE_OF_DICOM_ONLY))
def test_what_speaks_dicom_knows_no_ledger_and_no_spool(name):
    assert not internal(modules("dicom_node")[name]) & {"ledger", "spool", "worker", "schedule"}


@pytest.mark.parametrize("name", modules("dicom_node"))
def test_nothing_imports_the_command_line(name):
    assert name in TOP or not internal(modules("dicom_node")[name]) & TOP


@pytest.mark.parametrize(
    "name",
    [m for m in modules("model") if m in MEASURED or m.split(".")[0] in MEASURED_PACKAGES],
)
def test_networks_and_simulators_know_nothing_of_how_they_are_judged(name):
    judges = {"cli", "evaluate", "cost", "baselines"}
    reached = reached_from(name, "model")
    assert not {each for each in reached if each in judges or each.startswith("evaluation")}


@pytest.mark.parametrize("package", GROUND)
def test_packages_at_the_bottom_stand_on_themselves(package):
    for name in (m for m in modules("model") if m.split(".")[0] == package):
        below = {each.split(".")[0] for each in internal(modules("model")[name], "model")}
        assert below <= {package}, name


@pytest.mark.parametrize("name", [m for m in modules("model") if m.split(".")[0] == "training"])
def test_training_does_not_know_the_tables(name):
    reached = reached_from(name, "model")
    assert not {each for each in reached if each.split(".")[0] in {"evaluation", "evaluate"}}


@pytest.mark.parametrize("name", [m for m in modules("model") if m not in TOP])
def test_no_model_module_imports_the_command_line(name):
    assert not internal(modules("model")[name], "model") & TOP


@pytest.mark.parametrize("name", [m for m in modules("model") if m.startswith("evaluation")])
def test_protocols_do_not_know_the_run_that_calls_them(name):
    assert "evaluate" not in internal(modules("model")[name], "model")


@pytest.mark.parametrize("package", ["dicom_node", "model"])
def test_no_import_cycles(package):
    assert_no_circle({name: at_top_level(path, package) for name, path in modules(package).items()})


@pytest.mark.parametrize("package", ["dicom_node", "model"])
def test_folders_import_each_other_in_one_direction(package):
    graph: dict[str, set[str]] = {}
    for name, path in modules(package).items():
        folder = name.split(".")[0]
        below = {each.split(".")[0] for each in at_top_level(path, package)} - {folder, "__init__"}
        graph.setdefault(folder, set()).update(below)
    assert_no_circle(graph)


def assert_no_circle(graph: dict[str, set[str]]) -> None:
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for below in graph[name]:
                visit(below, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.splitlines())


def test_receiver_needs_neither_torch_nor_the_decoders():
    loaded = loaded_by("import dicom_node.receive")
    assert not loaded & {
        "torch",
        "dicom_node.decode",
        "dicom_node.derive",
        "dicom_node.despeckle",
        "highdicom",
    }


def test_help_does_not_import_torch():
    code = "from dicom_node.cli import app; from typer.main import get_command; get_command(app)"
    loaded = loaded_by(code)
    assert not loaded & {"torch", "pydicom", "sqlalchemy"}


def test_export_list():
    import dicom_node

    assert dicom_node.__all__ == ["__version__"]
