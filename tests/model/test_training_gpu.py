"""Training on a GPU: a recorded step computes what its kernels compute one by one."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")

from model.training import logs, runs
from model.training.objective import Objective, recorded
from model.training.recipe import Recipe

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
RECIPE = Recipe.model_validate(
    {
        "name": "recorded",
        "network": {"block": "reparameterised", "selective": True},
        "distillation": {"teacher": "anyone", "affinity": 0.02},
        "loss": {"charbonnier": 1.0, "gradient": 0.25, "ms_ssim": 0.02, "contrast": 1.0},
    }
)


def batch(seed):
    generator = torch.Generator("cuda").manual_seed(seed)

    def draw(*shape):
        return torch.rand(shape, device="cuda", generator=generator)

    noisy, target, taught = (draw(4, 1, 128, 128) for _ in range(3))
    clustered, real = (draw(4, 1, 1, 1) < 0.5 for _ in range(2))
    return noisy, target, clustered, taught, real, draw(4, 16, 16, 16)


def values_and_gradients(terms, network, given):
    for parameter in network.parameters():
        parameter.grad = None
    with torch.autocast("cuda", torch.bfloat16):
        values = terms(*given)
    values.sum().backward()
    return values.detach().clone(), [p.grad.clone() for p in network.parameters()]


def test_a_recorded_step_is_the_step_itself():
    torch.manual_seed(1)
    network = RECIPE.network.build().cuda().to(memory_format=torch.channels_last)
    with torch.autocast("cuda", torch.bfloat16):
        terms = recorded(Objective(network, RECIPE), batch(0))
    plain = Objective(network, RECIPE)
    for seed in (1, 2):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        values, gradients = values_and_gradients(terms, network, batch(seed))
        expected, wanted = values_and_gradients(plain.forward, network, batch(seed))
        torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-5)
        for got, want in zip(gradients, wanted, strict=True):
            assert float((got - want).norm()) <= 0.05 * float(want.norm()) + 1e-6


def test_a_student_learns_on_the_gpu_and_goes_on(tmp_path, monkeypatch):
    from model.train import train

    monkeypatch.chdir(tmp_path)
    text = (ROOT / "config" / "model" / "smoke.toml").read_text()
    text = re.sub(r"(?m)^validation_steps = .*", "validation_steps = 100", text)
    path = tmp_path / "smoke.toml"
    for steps in (200, 300):
        path.write_text(re.sub(r"(?m)^steps = .*", f"steps = {steps}", text))
        train(path, tmp_path / "runs")
    rows = logs.read(tmp_path / "runs" / "smoke" / logs.FILE)
    gains = [row["val/gain"] for row in rows if "val/gain" in row]
    assert len(gains) == 3
    assert gains[-1] > gains[0]
    run = runs.load(tmp_path / "runs" / "smoke")
    assert run.steps == 300
    assert all(parameter.isfinite().all() for parameter in run.network.parameters())
