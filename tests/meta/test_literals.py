"""No DIMSE status is spelled as a number outside `status`, and log lines have fixed names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {
    str(path.relative_to(ROOT)): path for path in sorted((ROOT / "dicom_node").rglob("*.py"))
}
LOG_METHODS = {"debug", "info", "warning", "error", "critical", "exception"}


def is_status(value: object) -> bool:
    """Whether a number looks like a status of PS3.4 or PS3.7 annex C."""
    return type(value) is int and (
        0x0105 <= value <= 0x0213 and f"{value:04x}"[1] in "12"
        if value < 0x1000
        else value & 0xFF00 in {0xA700, 0xA900, 0xB000, 0xC000} or value in {0xFE00, 0xFF00, 0xFF01}
    )


@pytest.mark.parametrize("name", MODULES)
def test_no_status_literals_outside_status(name):
    if name == "dicom_node/network/status.py":
        return
    text = MODULES[name].read_text()
    found = [
        f"line {node.lineno}: {ast.get_source_segment(text, node)}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant)
        and is_status(node.value)
        and (ast.get_source_segment(text, node) or "").lower().startswith("0x")
        and len(ast.get_source_segment(text, node) or "") == len("0x0000")
    ]
    assert not found


@pytest.mark.parametrize("name", MODULES)
def test_log_lines_have_a_fixed_event_name_and_no_f_strings(name):
    found = []
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in LOG_METHODS
            and ast.unparse(node.func.value) in {"_log", "self._log", "log"}
        ):
            found += [
                f"line {node.lineno}"
                for part in [*node.args, *(keyword.value for keyword in node.keywords)]
                if isinstance(part, ast.JoinedStr)
            ]
            found += [f"line {node.lineno}: more than a name" for _ in node.args[1:]]
    assert not found


def test_broad_excepts_are_at_the_two_process_edges_only():
    found = []
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
            ):
                cleans_up = bool(node.body) and isinstance(node.body[-1], ast.Raise)
                if not cleans_up:
                    found.append(name)
    assert sorted(found) == ["dicom_node/receive.py", "dicom_node/service/edge.py"]
