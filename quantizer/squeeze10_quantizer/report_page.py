"""A layer report as HTML: tables, and figures where matplotlib is installed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import torch

from squeeze10_kernels.llama import INPUT_GROUPS, LlamaShape
from squeeze10_quantizer import report_figures as figures
from squeeze10_quantizer.activation_ranges import InputRange, LayerComparison
from squeeze10_quantizer.plotting import can_plot

PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
h2 {{ margin-top: 2.5rem }}
table {{ border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums }}
th, td {{ padding: .1rem .5rem; text-align: right; border: 1px solid #ddd }}
th:first-child, td:first-child {{ text-align: left; overflow-wrap: anywhere }}
table.facts td {{ text-align: left; overflow-wrap: anywhere }}
svg {{ max-width: 100%; height: auto }}
svg image {{ image-rendering: pixelated }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


@dataclass(frozen=True, slots=True)
class OutputFigure:
    """A linear whose outputs the paper shows, and the depth at which it does: after this share of the layers."""

    linear: str
    depth: float

    def layer(self, num_layers: int) -> int:
        """The layer at this depth of another model, from 0."""
        return int(self.depth * num_layers)


FIGURE_3: Final = OutputFigure("self_attn.k_proj", 24 / 32)
"""The 25th layer of LLaMA-7B, by the caption."""
FIGURE_4: Final = OutputFigure("self_attn.o_proj", 5 / 32)
"""The 6th layer of LLaMA2-7B."""


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What a checkpoint's own files say.

    Attributes:
        summary: Of `inspect_checkpoint`.
        made: `squeeze10_report.json`; empty if there is none.
        shares: By the first linear of each input, `[layers, K]`: share of 4-bit weights in every channel.
    """

    name: str
    summary: dict[str, Any]
    made: dict[str, Any]
    shape: LlamaShape
    shares: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Activations:
    """What a comparison with the original model found, and on what text."""

    original: str
    source: str
    layers: Sequence[LayerComparison]


def render(report: LayerReport, activations: Activations | None) -> str:
    """The page; without matplotlib without figures."""
    parts = [*facts(report), *errors_at_quantization(report, activations), *salient_channels(report), *losses(report)]
    if activations:
        parts += [*measured_errors(activations), *ranges(activations), *output_figures(activations)]
    return PAGE.format(title=escape(f"Layers of {report.name}"), body="\n".join(parts))


def figure(draw: Any, *arguments: Any) -> str:
    """A figure, or what is missing for it."""
    if can_plot():
        return f"<figure>{draw(*arguments)}</figure>"
    return "<p><em>No plot: matplotlib was missing.</em></p>"


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str | float]], kind: str = "") -> str:
    """A table of plain text, and of numbers that are the redder the larger they are."""
    top = max((cell for row in rows for cell in row if isinstance(cell, float)), default=0.0) or 1.0

    def cell(value: str | float) -> str:
        if isinstance(value, str):
            return f"<td>{escape(value)}</td>"
        return f"<td style='background:rgb(255 90 60/{value / top:.2f})'>{value:.4f}</td>"

    lines = [f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>"] if head else []
    lines += [f"<tr>{''.join(map(cell, row))}</tr>" for row in rows]
    return "\n".join([f"<table class='{kind}'>", *lines, "</table>"])


def heat_map(values: Sequence[Sequence[float]], names: Sequence[str]) -> str:
    """Layers times linears, each value in its colour."""
    return table(["layer", *short(names)], [[str(index), *row] for index, row in enumerate(values)])


def short(names: Sequence[str]) -> list[str]:
    """Names of linears without the part of the layer that they are in."""
    return [name.rpartition(".")[2] for name in names]


def facts(report: LayerReport) -> Iterator[str]:
    """The checkpoint as a whole, and every matrix."""
    summary, made = report.summary, report.made
    yield table(
        [],
        [
            ["bits per weight, linears, every stored byte counted", f"{summary['bits_per_weight']:.3f}"],
            ["bits per weight, whole model", f"{summary['model_bits_per_weight']:.3f}"],
            ["salient weights", f"{summary['salient_ratio']:.2%} at 4 bits, mask {summary['mask']}"],
            ["embeddings and lm_head", f"{summary['head_bits']} bits"],
            *([key, str(made[key])] for key in ("model", "calibration", "command", "machine") if key in made),
        ],
        "facts",
    )
    rows = []
    for name, (N, K) in report.shape.linears().items():
        bits = [layer["bits"] for layer in summary["layers"] if layer["name"].endswith(f".{name}")]
        first = next(group[0] for group in INPUT_GROUPS if name in group)
        salient = float(report.shares[first].mean())
        rows.append([name, f"{N} x {K}", f"{sum(bits) / len(bits):.3f}", f"{salient:.2%}"])
    yield "<h2>Matrices</h2>"
    yield table(["of every layer", "N x K", "bits", "salient weights of its input"], rows)


def errors_at_quantization(report: LayerReport, activations: Activations | None) -> Iterator[str]:
    """Those that quantization measured, if it did."""
    names = list(report.shape.linears())
    found = [layer["relative_output_error"] for layer in report.summary["layers"]]
    yield "<h2>Error of every layer and matrix</h2>"
    if None in found:
        elsewhere = "they are measured below" if activations else "--against MODEL measures them"
        yield paragraph(
            "squeeze10_report.json has no errors for these weights (distillation changes them after they were "
            f"measured); {elsewhere}."
        )
        return
    yield paragraph("Relative output error |ΔW X|² / |W X|² on the calibration of the quantization, of 1.")
    yield heat_map([found[i : i + len(names)] for i in range(0, len(found), len(names))], names)


def salient_channels(report: LayerReport) -> Iterator[str]:
    """The map."""
    yield "<h2>Salient channels</h2>"
    yield paragraph(
        "Black: a channel is 4-bit in all rows that read it; white: it is 1-bit. Where a cell holds several channels, "
        "its grey is their mean. Linears of one input share a map; under mask elements it is the mean over their rows."
    )
    yield figure(figures.salient_map, report.shares)


def losses(report: LayerReport) -> Iterator[str]:
    """What training gained, if there was any."""
    blocks, divergence = report.made.get("blocks", []), report.made.get("divergence")
    if not any(blocks) and divergence is None:
        return
    yield "<h2>Tuning</h2>"
    if any(blocks):
        yield paragraph("Loss of every decoder layer against the original's outputs, before and after its own tuning.")
        yield figure(figures.tuning_losses, blocks)
    if divergence:
        yield paragraph(
            f"Distillation: divergence from the original {divergence['before']:.4f} before, "
            f"{divergence['after']:.4f} nats a token after it."
        )


def measured_errors(activations: Activations) -> Iterator[str]:
    """Errors with and without quantized inputs."""
    yield f"<h2>Against {escape(activations.original)}</h2>"
    yield paragraph(f"Both models read {activations.source}, the original in fp32, the checkpoint dequantized to fp32.")
    yield figure(figures.errors_and_drift, activations.layers)
    for key, title in (
        ("same_inputs", "Output errors without quantized inputs: both read the original's"),
        ("own_inputs", "Output errors with quantized inputs: the checkpoint reads its own"),
    ):
        names = list(activations.layers[0].linears)
        values = [[getattr(layer.linears[name], key).relative for name in names] for layer in activations.layers]
        yield f"<h3>{title}</h3>"
        yield heat_map(values, names)


def ranges(activations: Activations) -> Iterator[str]:
    """Ranges of the inputs."""
    yield "<h2>Activation ranges with and without quantized inputs</h2>"
    yield paragraph("Inputs of the linears in the original model and in the quantized one, over all tokens.")
    yield figure(figures.input_ranges, activations.layers)
    yield paragraph("The largest magnitude of a channel in the quantized model, over that in the original.")
    yield figure(figures.channel_ranges, activations.layers)
    head = ["layer, input of", "min", "0.1 %", "99.9 %", "max", "largest |x| of the median channel"]
    head += [f"quantized: {name}" for name in head[1:]] + ["drift |Δx|² / |x|²"]
    rows = []
    for index, layer in enumerate(activations.layers):
        for name, found in layer.inputs.items():
            cells = [*range_cells(found.original), *range_cells(found.quantized), f"{found.drift.relative:.4f}"]
            rows.append([f"{index}, {name.rpartition('.')[2]}", *cells])
    yield table(head, rows)


def range_cells(found: InputRange) -> list[str]:
    """Numbers of one input in one model."""
    values = (found.low, *found.quantiles, found.high, float(found.channels.median()))
    return [f"{value:.3g}" for value in values]


def output_figures(activations: Activations) -> Iterator[str]:
    """The paper's Figures 3 and 4, as far as one checkpoint can show them."""
    layers = activations.layers
    index = FIGURE_3.layer(len(layers))
    yield "<h2>Outputs as in the paper's Figures 3 and 4</h2>"
    yield paragraph(
        f"Figure 3 (c) to (e): outputs of {FIGURE_3.linear} in layer {index} of {len(layers)}, counted from 0, in both "
        f"models and their difference, over the first {figures.FIGURE_3_TOKENS} tokens of the first sample, on one "
        "scale whose ends are the original's. The paper shows LLaMA-7B and names no text; its caption says the 25th of "
        "32 layers, whose depth is taken here, its text the 7th. Where a cell holds several channels it has their "
        "value of the largest magnitude. (a) and (b) are diagrams."
    )
    yield figure(figures.output_maps, *layers[index].outputs[FIGURE_3.linear])
    index = FIGURE_4.layer(len(layers))
    yield paragraph(
        f"Figure 4: density of the outputs of {FIGURE_4.linear} in layer {index} (the depth of the paper's 6th of 32), "
        "over the first sample. The paper has a curve for each width of 2 to 8 bits of the salient part; a checkpoint "
        "has one width, 4. Its divergence depends on how the densities are made, which the paper does not say; here "
        f"{figures.BINS} bins between the ends of both, each count raised by 1."
    )
    yield figure(figures.output_densities, *layers[index].outputs[FIGURE_4.linear])
