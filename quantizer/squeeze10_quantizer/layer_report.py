"""`squeeze10 report`: what quantization did to every layer, as one HTML file that needs nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from squeeze10_kernels import BadInput, Checkpoint, open_checkpoint
from squeeze10_kernels.llama import INPUT_GROUPS, layer_prefix
from squeeze10_kernels.packing import unpack_bits
from squeeze10_quantizer.activation_ranges import LayerComparison, compare_activations
from squeeze10_quantizer.calibration import load_calibration
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.directory import REPORT_NAME, refuse_existing, replaced
from squeeze10_quantizer.inspection import inspect_checkpoint, read_report
from squeeze10_quantizer.plotting import can_plot, say_no_plots
from squeeze10_quantizer.report_page import FIGURE_3, FIGURE_4, Activations, LayerReport, render


@dataclass(frozen=True, slots=True)
class Against:
    """The original model, and the tokens on which it and the checkpoint are compared.

    Attributes:
        calibration: Text files; none: a bundled text.
    """

    model: Path
    calibration: Sequence[Path]
    samples: int
    context: int
    seed: int
    device: torch.device

    def __post_init__(self) -> None:
        for name in ("samples", "context"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1; got {getattr(self, name)}.")


def write_layer_report(path: Path, out: Path, against: Against | None) -> None:
    """Write the report on a checkpoint to `out`, which appears when it is whole.

    Args:
        against: None: no activations are compared.

    Raises:
        BadInput: `out` exists, or the checkpoint, the original or the calibration files cannot be used.
        OSError: Reading or writing failed.
    """
    refuse_existing(out)
    checkpoint = open_checkpoint(path)
    made, layers = read_training(path), range(checkpoint.shape.num_layers)
    shares = {group[0]: torch.stack([channel_shares(checkpoint, i, group) for i in layers]) for group in INPUT_GROUPS}
    report = LayerReport(path.resolve().name, inspect_checkpoint(path), made, checkpoint.shape, shares)
    activations = None if against is None else compare(checkpoint, against)
    if not can_plot():
        say_no_plots()
    page = render(report, activations)
    refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replaced(out) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def compare(checkpoint: Checkpoint, against: Against) -> Activations:
    """The activations of both models."""
    decoder = Decoder(against.model, against.device)
    tokenizer = AutoTokenizer.from_pretrained(against.model, trust_remote_code=False)
    chosen = {"samples": against.samples, "context": against.context, "seed": against.seed}
    text = load_calibration(against.calibration, tokenizer, **chosen)
    num_layers = checkpoint.shape.num_layers
    keep: dict[int, list[str]] = {}
    for figure in (FIGURE_3, FIGURE_4):
        keep.setdefault(figure.layer(num_layers), []).append(figure.linear)
    walk = compare_activations(decoder, checkpoint, text.tokens, keep)
    layers: list[LayerComparison] = list(tqdm(walk, total=num_layers, unit="layer", desc="compare"))
    source = f"{against.samples} samples of {against.context} tokens, {text.source}"
    return Activations(against.model.resolve().name, source, layers)


def channel_shares(checkpoint: Checkpoint, index: int, group: tuple[str, ...]) -> torch.Tensor:
    """Share of 4-bit weights in every channel of one input, `[K]` fp32: 0 or 1 under mask `columns`."""
    names = (f"{layer_prefix(index)}.{name}.salient_mask" for name in group)
    masks = [torch.atleast_2d(unpack_bits(checkpoint.directory.tensor(name))) for name in names]
    return torch.cat(masks).mean(0, dtype=torch.float32)


def read_training(path: Path) -> dict[str, Any]:
    """`read_report`; `BadInput` unless the losses in it can be shown."""
    file, report = path / REPORT_NAME, read_report(path)
    blocks, divergence = report.get("blocks", []), report.get("divergence")
    if not (isinstance(blocks, list) and all(block is None or is_pair(block) for block in blocks)):
        raise BadInput(
            f"{file} must hold the losses before and after tuning under blocks; remove it or fetch it again."
        )
    if not (divergence is None or is_pair(divergence)):
        raise BadInput(f"{file} must hold numbers before and after under divergence; remove it or fetch it again.")
    return report


def is_pair(value: Any) -> bool:
    """Whether a value has numbers before and after training."""
    return isinstance(value, dict) and all(type(value.get(key)) in (int, float) for key in ("before", "after"))
