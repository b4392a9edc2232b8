"""Every knob of the quantizer, with its default, unit and source."""

from dataclasses import asdict, dataclass
from typing import Any

from squeeze10_kernels import BadInput
from squeeze10_kernels.format import Mask


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is quantized. Paper: Squeeze10-LLM, arXiv 2507.18073.

    Attributes:
        mask: Which weights may be 4-bit: whole input channels, or any element (the paper's).
        salient_ratio: Share of 4-bit weights (paper: 0.2).
        samples: Calibration sequences.
        context: Tokens of each.
        seed: Chooses the calibration windows.
        fias: Calibrate every layer on the original model's activations (4.3); off: on the quantized model's.
        pbar: Add the post-binarization activation range to the salience (Eq. 8); off: Hessian salience only.
        staged: Start from the weights rounded to 4 bits (4.1); off, since it costs accuracy: LOG.md, 2026-11-22.
        pbar_weight: λ of Eq. 8 (Table 6: 3e-4), for a Hessian averaged over sequences.
        pbar_tokens: Calibration tokens over which output ranges are taken; a range is set by few extremes, and
            the cost is one more product with the weights.
        compensate: Push each channel's rounding error onto the channels not yet rounded (GPTQ).
        damp_ratio: Share of the mean diagonal added to the Hessian before it is inverted (GPTQ).
        chunks: Forced number of chunks; None takes what the format's law gives for the model.
    """

    mask: Mask = "columns"
    salient_ratio: float = 0.2
    samples: int = 128
    context: int = 2048
    seed: int = 0
    fias: bool = True
    pbar: bool = True
    staged: bool = False
    pbar_weight: float = 3e-4
    pbar_tokens: int = 4096
    compensate: bool = True
    damp_ratio: float = 0.01
    chunks: int | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "context", "pbar_tokens"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1; got {getattr(self, name)}.")
        if not 0 < self.damp_ratio <= 1:
            raise BadInput(f"damp_ratio must lie above 0 and at most 1; got {self.damp_ratio}.")
        if self.pbar_weight < 0:
            raise BadInput(f"pbar_weight must not be negative; got {self.pbar_weight}.")

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain values, for the report and for the comparison on resume."""
        return asdict(self)
