"""A layer's training against held-out samples: when it ends, and which state is kept."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from squeeze10_quantizer import block_tuning
from squeeze10_quantizer.block_tuning import BlockLoss, tune_block

STEPS = 80


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch):
    """Trains a stand-in whose only weight counts the steps, with these held-out losses; the loss and the weight."""

    def run(left: Iterator[float]) -> tuple[BlockLoss, float]:
        weight = nn.Parameter(torch.zeros(1))
        monkeypatch.setattr(block_tuning, "make_optimizer", lambda *_: None)
        monkeypatch.setattr(block_tuning, "parameters_of", lambda _: [weight])
        monkeypatch.setattr(block_tuning, "held_out_error", lambda *_: next(left))

        def train(*_: object) -> object:
            for step in range(10, STEPS + 1, 10):
                weight.data.fill_(step)
                yield step

        monkeypatch.setattr(block_tuning, "train", train)
        task = SimpleNamespace(targets=torch.ones(1, 1, 1), held_out=1)
        return tune_block(nn.Identity(), [], task, steps=STEPS, seed=0), float(weight.detach())  # type: ignore[arg-type]

    return run


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        pytest.param([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], 80, id="gains_to_the_end"),
        pytest.param([1, 0.5, 0.4, 0.6, 0.7, 0.5, 0.6], 20, id="four_worse_checks_end_it"),
        pytest.param([1, 0.5, 0.6, 0.7, 0.8, 0.4, 0.5, 0.2, 0.3], 70, id="three_worse_checks_do_not"),
        pytest.param([1, 5, 4, 3, 2, 1.5, 1.2, 1.1, 0.9], 80, id="worse_than_the_start_until_late"),
        pytest.param([1, 5, 6, 7, 8, 9], 0, id="never_better"),
        pytest.param([1, 0.9, float("nan")], 10, id="not_a_number"),
    ],
)
def test_the_best_checked_state_is_kept(tuned, losses: list[float], kept: int) -> None:
    """All losses must be used: training that went on, or ended too early, would ask for more or leave some."""
    left = iter(losses)
    loss, weight = tuned(left)

    assert list(left) == []
    assert weight == kept
    assert loss == BlockLoss(1, min([value for value in losses if value == value]), kept)


def test_checks_are_spread_over_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are fewer steps than checks."""
    monkeypatch.setattr(block_tuning, "layer_loss", lambda layer, x, y, _: (layer(x) - y).square().mean())
    linear = nn.Linear(4, 4)
    optimizer = torch.optim.Adam([{"params": linear.parameters(), "peak": 0.1}])
    states = torch.randn(4, 2, 4)

    for steps, expected in ((80, list(range(10, 81, 10))), (3, [1, 2, 3]), (1, [1])):
        assert list(checks_of(linear, optimizer, states, steps)) == expected


def checks_of(linear: nn.Module, optimizer: torch.optim.Optimizer, states: torch.Tensor, steps: int) -> object:
    task = SimpleNamespace(
        inputs=states, targets=states, held_out=1, batch=2, device=states.device, rotary=None,
        pairs=lambda rows: torch.stack((states[rows], states[rows])),
    )  # fmt: skip
    return block_tuning.train(linear, optimizer, task, steps, 0)  # type: ignore[arg-type]
