"""Every knob of the quantizer, with its default, unit and source."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from squeeze10_kernels import BadInput
from squeeze10_kernels.format import Mask

Tune = Literal["none", "blocks", "distill"]


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
        staged: Start from the weights rounded to 4 bits (4.1). The three are off, since each costs accuracy: LOG.md,
            2026-11-22 and 24.
        pbar_weight: λ of Eq. 8 (Table 6: 3e-4), for a Hessian averaged over sequences.
        pbar_tokens: Calibration tokens over which output ranges are taken; a range is set by few extremes, and
            the cost is one more product with the weights.
        compensate: Push each channel's rounding error onto the channels not yet rounded (GPTQ).
        damp_ratio: Share of the mean diagonal added to the Hessian before it is inverted (GPTQ).
        tune: What is trained after rounding: nothing; every decoder layer towards its original outputs (`blocks`);
            that and then the whole model towards the original's probabilities (`distill`).
        tune_steps: Steps of training for each decoder layer, at most.
        tune_inputs: What a layer reads meanwhile: 1, what it will read in the quantized model (as GPTAQ); 0, the
            original activations (as FIAS); between, a mixture.
        distill_tokens: Tokens of training for the whole model.
        distill_codes: Train codes and scales of the whole model; off: scales only, for models whose latents (16 bytes
            a weight, with their optimizer) do not fit.
        checkpointing: Keep the inputs of its layers only, and compute the rest again for their gradients.
        head_bits: Of the embeddings and lm_head: 16 leaves them as they are, 8 and 4 quantize them after the layers.
        chunks: Forced number of chunks; None takes what the format's law gives for the model.
    """

    mask: Mask = "columns"
    salient_ratio: float = 0.2
    samples: int = 128
    context: int = 2048
    seed: int = 0
    fias: bool = False
    pbar: bool = False
    staged: bool = False
    pbar_weight: float = 3e-4
    pbar_tokens: int = 4096
    compensate: bool = True
    damp_ratio: float = 0.01
    chunks: int | None = None
    head_bits: int = 16
    tune: Tune = "none"
    tune_steps: int = 400
    tune_inputs: float = 1.0
    distill_tokens: int = 30_000_000
    distill_codes: bool = True
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("samples", "context", "pbar_tokens", "tune_steps", "distill_tokens"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1; got {getattr(self, name)}.")
        if not 0 < self.damp_ratio <= 1:
            raise BadInput(f"damp_ratio must lie above 0 and at most 1; got {self.damp_ratio}.")
        if self.tuned and self.samples < 2:
            raise BadInput(f"samples must be at least 2 for tuning, which holds one out; got {self.samples}.")
        if self.tune != "distill" and not self.distill_codes:
            raise BadInput(f"--no-distill-codes is for --tune distill only; --tune is {self.tune}.")
        if not 0 <= self.tune_inputs <= 1:
            raise BadInput(f"tune_inputs must lie from 0 to 1; got {self.tune_inputs}.")
        if self.pbar_weight < 0:
            raise BadInput(f"pbar_weight must not be negative; got {self.pbar_weight}.")

    @property
    def tuned(self) -> bool:
        """Whether anything is trained."""
        return self.tune != "none"

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain values, for the report and for the comparison on resume."""
        return asdict(self)
