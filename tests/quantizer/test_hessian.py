"""The Hessian is 2 XᵀX over sequences, and its inverse survives singular inputs."""

import pytest
import torch
from assertions import assert_close

from squeeze10_kernels import BadInput
from squeeze10_quantizer.hessian import HessianSum, compensation_factor, inverse


@pytest.mark.parametrize("K", [8, 30, 577])
def test_sum_over_batches_is_equation_6(K):
    """Panels above the diagonal and mirroring must give the full product."""
    batches = [torch.randn(2, 11, K), torch.randn(1, 11, K)]
    total = HessianSum(K, torch.device("cpu"))
    for batch in batches:
        total.add(batch)

    rows = torch.cat([batch.flatten(0, 1) for batch in batches]).double()
    assert_close(total.value(), 2 / 3 * rows.T @ rows, rms=1e-6)
    assert torch.equal(total.value(), total.value().T)


@pytest.mark.parametrize("kind", ["dead_channel", "duplicate_channel", "rank_1", "all_zero"])
def test_singular_hessian_is_damped(kind):
    """Fewer tokens than channels, dead and equal channels are everyday inputs."""
    x = torch.randn(50, 12)
    if kind == "dead_channel":
        x[:, 4] = 0
    if kind == "duplicate_channel":
        x[:, 4] = x[:, 7]
    if kind == "rank_1":
        x = x[:1]
    if kind == "all_zero":
        x = x * 0
    hessian = x.T @ x
    damp = 0.01 * hessian.diagonal().mean().double() or 1.0

    result = inverse(hessian, 0.01)

    assert_close(result @ (hessian.double() + damp * torch.eye(12)), torch.eye(12).double(), rms=1e-6)


def test_hopeless_hessian_is_refused():
    """No bare Cholesky error reaches a user."""
    with pytest.raises(BadInput, match="calibrate on more"):
        inverse(torch.full((4, 4), float("nan")), 0.01)


def test_factor_follows_the_order_of_rounding():
    """U of the permuted inverse, `inv = Uᵀ U`."""
    x = torch.randn(40, 6)
    inverse_hessian = inverse(x.T @ x, 0.01)
    order = torch.tensor([3, 1, 5, 0, 2, 4])

    factor = compensation_factor(inverse_hessian, order).double()

    assert_close(factor.T @ factor, inverse_hessian[order][:, order], rms=1e-6)
    assert torch.equal(factor, factor.triu())
