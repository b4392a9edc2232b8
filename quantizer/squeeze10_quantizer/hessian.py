"""The Hessian of a linear layer's output error, and what salience and compensation need of its inverse."""

from itertools import pairwise
from typing import Final

import torch

from squeeze10_kernels import BadInput

PANELS: Final = 4
"""Row panels of XᵀX; only blocks on and above the diagonal are multiplied: 5/8 of the work."""
DAMP_STEPS: Final = (1.0, 10.0, 100.0)


class HessianSum:
    """`H = 2/n Σ_t x_t x_tᵀ` over the tokens of n sequences (Eq. 6).

    Averaged over sequences, not tokens, as in PB-LLM's code, from which the paper's λ has its scale.
    """

    def __init__(self, K: int, device: torch.device) -> None:
        self.upper = torch.zeros(K, K, device=device)
        self.sequences = 0

    def add(self, x: torch.Tensor) -> None:
        """Add activations `[sequences, tokens, K]` fp32."""
        self.sequences += x.shape[0]
        rows = x.flatten(0, 1)
        K = rows.shape[1]
        edges = [K * i // PANELS for i in range(PANELS + 1)]
        for start, stop in pairwise(edges):
            self.upper[start:stop, start:] += rows[:, start:stop].T @ rows[:, start:]

    def value(self) -> torch.Tensor:
        """H, `[K, K]` fp32, symmetric."""
        upper = self.upper.triu()
        return (upper + upper.triu(1).T) * (2 / self.sequences)


def inverse(hessian: torch.Tensor, damp_ratio: float) -> torch.Tensor:
    """Inverse of the damped Hessian, `[K, K]` fp64; damping is raised tenfold up to twice if it must.

    A channel that is always zero keeps its weights: damping alone makes it invertible, and nothing is pushed onto it.
    """
    damp = float(damp_ratio * hessian.diagonal().mean()) or 1.0
    for step in DAMP_STEPS:
        damped = hessian.double()
        damped.diagonal().add_(damp * step)
        factor, fault = torch.linalg.cholesky_ex(damped)
        if not fault:
            # twice as fast as cholesky_inverse, and far faster on busy cores
            half: torch.Tensor = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(damped), upper=False)
            return half.T @ half
    raise BadInput(
        f"The Hessian stays singular at a damping of {damp_ratio * DAMP_STEPS[-1]:g} of its mean diagonal; "
        "calibrate on more or more varied text, or raise --damp-ratio."
    )


def compensation_factor(inverse_hessian: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor U of the inverse in the order of rounding, `inv = Uᵀ U`, `[K, K]` fp32 (GPTQ)."""
    factor: torch.Tensor = torch.linalg.cholesky(inverse_hessian[order][:, order], upper=True)
    return factor.float()
