"""A step that is replayed as a CUDA graph does what it did when it was launched."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from random_layers import random_layer
from torch import nn

from squeeze10_kernels import QuantizedLinear
from squeeze10_quantizer import replay
from squeeze10_quantizer.block_tuning import tune_layer
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.distillation import Distillation
from squeeze10_quantizer.lesson import make_lesson, on_device
from squeeze10_quantizer.recipe import Recipe
from squeeze10_quantizer.replay import EAGER_STEPS, Replayed
from squeeze10_quantizer.training import set_rates

STEPS = 12


@dataclass
class Rounded:
    """Every decoder layer the same, latents in the middle of their codes."""

    layers: dict[str, QuantizedLinear]

    def linear(self, index: int, name: str) -> QuantizedLinear:
        return self.layers[name]

    def latent(self, index: int, name: str) -> torch.Tensor:
        codes = self.layers[name].codes.float()
        return torch.where(self.layers[name].salient, codes - 8, 0.9 * (2 * codes - 1))

    def tables(self) -> dict[str, QuantizedLinear]:
        return {}


def trained(x: torch.Tensor, *, replayed: bool) -> tuple[torch.Tensor, list[float]]:
    """Weights after some steps of Adam at changing rates, and the losses."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 64, device="cuda")
    group = {"params": list(linear.parameters()), "peak": 1e-2, "lr": torch.zeros((), device="cuda")}
    optimizer = torch.optim.Adam([group], fused=True, capturable=True)

    def plain(ids: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = (linear(ids) - ids).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    step, losses = Replayed(plain, x.device) if replayed else plain, []
    for number in range(STEPS):
        set_rates(optimizer, number, STEPS)
        losses.append(float(step(x[number])))
    return linear.weight.detach(), losses


@pytest.mark.gpu
def test_replays_change_what_the_steps_would_change() -> None:
    assert STEPS > EAGER_STEPS + 4
    x = torch.randn(STEPS, 32, 64, device="cuda")

    (weight, losses), (expected, plain) = (trained(x, replayed=replayed) for replayed in (True, False))

    torch.testing.assert_close(weight, expected)
    torch.testing.assert_close(losses, plain)


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("codes", [True, False])
def test_a_distillation_replays_what_it_would_launch(tiny_model: Path, codes: bool, checkpointing: bool) -> None:
    """Eight steps, a saved state, eight more in a new run; against sixteen plain steps."""
    device = torch.device("cuda")
    decoder = Decoder(tiny_model, device)
    layers = {name: random_layer(*size, 24) for name, size in decoder.shape.linears().items()}
    windows = torch.randint(0, 256, (40, 256), generator=torch.Generator().manual_seed(0))

    def new_run() -> Distillation:
        lesson = make_lesson(decoder, Rounded(layers), windows, codes=codes)
        return Distillation(lesson, tokens=16 * lesson.batch * 256, seed=0, checkpointing=checkpointing)

    run, plain = new_run(), new_run()
    run.train(8)
    state = {name: tensor.clone() for name, tensor in run.state().items()}
    run = new_run()
    run.load(state)
    loss = run.train(8)
    plain.update = plain.plain_update

    torch.testing.assert_close(loss, plain.train(16), rtol=2e-2, atol=1e-3)
    assert run.step == plain.step == 16
    for parameter, expected in zip(run.parameters, plain.parameters, strict=True):
        torch.testing.assert_close(parameter, expected, rtol=2e-2, atol=2e-3)


@pytest.mark.gpu
def test_a_block_replays_what_it_would_launch(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    decoder = Decoder(tiny_model, device)
    layer = decoder.layer(0)
    start = {name: on_device(random_layer(*size, 24), device) for name, size in decoder.shape.linears().items()}
    inputs = torch.randn(32, 64, decoder.shape.hidden, device=device)
    targets = decoder.run(layer, inputs)

    def latents(eager_steps: int) -> list[torch.Tensor]:
        monkeypatch.setattr(replay, "EAGER_STEPS", eager_steps)
        linears, loss = tune_layer(decoder, layer, start, inputs, targets, Recipe(tune="blocks", tune_steps=STEPS))
        assert loss.after < loss.before
        return [linear.latent for linear in linears.values()]

    torch.testing.assert_close(latents(EAGER_STEPS), latents(STEPS), rtol=2e-2, atol=2e-3)
