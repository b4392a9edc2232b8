"""A step that is replayed as a CUDA graph does what it did when it was launched."""

import pytest
import torch
from torch import nn

from squeeze10_quantizer.replay import EAGER_STEPS, Replayed
from squeeze10_quantizer.training import set_rates

STEPS = 12


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

    step, losses = Replayed(plain) if replayed else plain, []
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
