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
        """H, `[K, K]` fp32, symmetric; `BadInput` if no sequence came, or their squares overflow."""
        if not self.sequences:
            raise BadInput("every calibration sample gives NaN or infinity; give other text or another model.")
        upper = self.upper.triu()
        hessian: torch.Tensor = (upper + upper.triu(1).T) * (2 / self.sequences)
        if not hessian.diagonal().isfinite().all():
            raise BadInput("the squares of calibration activations must stay in fp32 and do not; give another model.")
        return hessian


def inverse(hessian: torch.Tensor, damp_ratio: float) -> torch.Tensor:
    """Inverse of the damped Hessian, `[K, K]` fp64."""
    return damped_inverse(hessian, damp_ratio)[0]


def damped_inverse(hessian: torch.Tensor, damp_ratio: float) -> tuple[torch.Tensor, float | None]:
    """Inverse of the damped Hessian, `[K, K]` fp64, and its damping in mean diagonals if it had to be raised.

    It is raised tenfold up to twice. A channel that is always zero keeps its weights: damping alone makes it
    invertible, and nothing is pushed onto it.
    """
    damp = float(damp_ratio * hessian.diagonal().mean()) or 1.0
    for step in DAMP_STEPS:
        damped = hessian.double()
        damped.diagonal().add_(damp * step)
        factor, fault = torch.linalg.cholesky_ex(damped)
        if not fault:
            # twice as fast as cholesky_inverse, and far faster on busy cores
            half: torch.Tensor = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(damped), upper=False)
            return half.T @ half, None if step == DAMP_STEPS[0] else damp_ratio * step
    raise BadInput(
        f"the Hessian stays singular at a damping of {damp_ratio * DAMP_STEPS[-1]:g} of its mean diagonal; "
        "calibrate on more or more varied text, or raise --damp-ratio."
    )


def compensation_factor(inverse_hessian: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor U of the inverse in the order of rounding, `inv = Uᵀ U`, `[K, K]` fp32 (GPTQ)."""
    factor, fault = torch.linalg.cholesky_ex(inverse_hessian[order][:, order], upper=True)
    if fault:
        raise BadInput("the inverse of the Hessian is singular; calibrate on more text, or raise --damp-ratio.")
    upper: torch.Tensor = factor.float()
    return upper
