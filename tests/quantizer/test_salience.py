"""PBAR's ranges must be exact, and the choice must be the largest scores."""

import pytest
import torch
from assertions import assert_close

from squeeze10_quantizer.salience import activation_range, choose_channels, choose_elements, hessian_salience
from squeeze10_quantizer.uniform import binarize, round_uniform


def brute_force_range(x: torch.Tensor, weight: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Eq. 7 word for word: every weight changed alone, the whole output row, its maximum minus its minimum."""
    outputs = weight @ x.T
    ranges = torch.empty_like(delta)
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            changed = outputs[i] + delta[i, j] * x[:, j]
            ranges[i, j] = changed.max() - changed.min()
    return ranges


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("gaussian", id="gaussian"),
        pytest.param("outlier_channel", id="outlier_channel_decides_the_range"),
        pytest.param("outlier_token", id="one_token_decides_the_range"),
        pytest.param("repeated", id="the_same_tokens_again_and_again"),
        pytest.param("few", id="fewer_tokens_than_candidates"),
        pytest.param("constant", id="all_tokens_equal"),
    ],
)
def test_range_equals_brute_force(kind):
    """The pruning may skip tokens only where they cannot matter."""
    x = torch.randn(700, 24)
    if kind == "outlier_channel":
        x[:, 3] *= 300
    if kind == "outlier_token":
        x[17] *= 1000
    if kind == "repeated":
        x = x[:9].repeat(80, 1)
    if kind == "few":
        x = x[:5]
    if kind == "constant":
        x = x[:1].repeat(100, 1)
    weight = round_uniform(torch.randn(13, 24), 4)
    delta = binarize(weight) - weight

    ranges = activation_range(x, weight, delta)

    assert_close(ranges, brute_force_range(x, weight, delta), rms=1e-5)
    torch.testing.assert_close(ranges, brute_force_range(x, weight, delta), rtol=1e-4, atol=1e-3)


def test_hessian_salience_is_equation_5():
    """The square of the whole diagonal entry, not its root."""
    inverse = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    weight = torch.tensor([[2.0, 2.0, 2.0]])

    assert hessian_salience(weight, inverse).tolist() == [[4.0, 1.0, 0.25]]


def test_channels_are_balanced_over_chunks():
    """A rank's slice must hold as many salient channels as every other rank's."""
    salience = torch.arange(32.0)

    chosen = choose_channels(salience, count=8, chunks=4)

    assert chosen.nonzero().flatten().tolist() == [6, 7, 14, 15, 22, 23, 30, 31]


def test_ties_go_to_the_lower_channel():
    """Determinism: equal scores must not depend on the sort."""
    assert choose_channels(torch.zeros(64), count=3, chunks=1).nonzero().flatten().tolist() == [0, 1, 2]


def test_elements_are_the_largest_of_the_matrix():
    """Not of each row."""
    scores = torch.tensor([[9.0, 8.0, 7.0], [1.0, 2.0, 3.0]])

    assert choose_elements(scores, 3).tolist() == [[True, True, True], [False, False, False]]
