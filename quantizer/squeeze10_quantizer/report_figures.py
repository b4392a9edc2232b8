"""The figures of a layer report, as SVG to stand inside HTML; without matplotlib there are none."""

import io
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Final

import torch

from squeeze10_kernels.llama import INPUT_GROUPS
from squeeze10_quantizer.activation_ranges import TAIL, LayerComparison

WIDTH: Final = 9.0
"""Inches."""
SETTINGS: Final = {
    "font.size": 8,
    "svg.fonttype": "none",  # text stays text: smaller, and it can be searched
    "svg.hashsalt": "squeeze10",  # the same figure has the same bytes
}
SHORTER: Final = {
    r'<g id="[^"]*"': "<g",  # the same in all figures, and nothing refers to them
    r"font-family: [^;\"]*": "font-family: sans-serif",
    r"([ML] -?\d+\.\d\d)\d* (-?\d+\.\d\d)\d*": r"\1 \2",  # paths, to a hundredth of a point
    r"\n +": "\n",
}
"""What a page of several figures does not need."""
MAX_CELLS: Final = 768
"""Across a picture, so that every cell has a pixel of its own."""
FIGURE_3_TOKENS: Final = 64
FIGURE_3_CELLS: Final = 256
BINS: Final = 200
"""Of a density."""
INPUTS: Final = {group[0]: ", ".join(name.rpartition(".")[2] for name in group) for group in INPUT_GROUPS}
"""The first linear of each input to the names of all that read it."""


def svg(height: float, draw: Callable[[Any], None]) -> str:
    """An SVG element of `height` inches with what `draw` puts on a figure."""
    matplotlib, figures = import_module("matplotlib"), import_module("matplotlib.figure")
    text = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        figure = figures.Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=nothing)
    element = text.getvalue()
    element = element[element.index("<svg") :]
    for pattern, short in SHORTER.items():
        element = re.sub(pattern, short, element)
    return element


def block_means(shares: torch.Tensor, cells: int) -> torch.Tensor:
    """Means of equal blocks of columns, `[rows, at most cells]`; the last block may be shorter."""
    size = -(-shares.shape[1] // cells)
    return torch.stack([block.mean(1) for block in shares.split(size, dim=1)], dim=1)


def block_extremes(values: torch.Tensor, cells: int) -> torch.Tensor:
    """The value of the largest magnitude in equal blocks of columns, with its sign, `[rows, at most cells]`."""
    blocks = values.split(-(-values.shape[1] // cells), dim=1)
    return torch.cat([block.gather(1, block.abs().argmax(1, keepdim=True)) for block in blocks], dim=1)


def salient_map(shares: dict[str, torch.Tensor]) -> str:
    """Which input channels are 4-bit: by input, `[layers, K]` shares of a channel's weights."""

    def draw(figure: Any) -> None:
        all_axes = figure.subplots(len(shares), 1)
        for axes, (name, share) in zip(all_axes, shares.items(), strict=True):
            K = share.shape[1]
            cells = block_means(share, MAX_CELLS).numpy()
            extent = (0, K, len(share) - 0.5, -0.5)
            image = axes.imshow(cells, aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="none", extent=extent)
            axes.set(ylabel="layer", title=f"{INPUTS[name]}: {K} channels, {-(-K // MAX_CELLS)} in a cell")
        all_axes[-1].set(xlabel="input channel")
        figure.colorbar(image, ax=all_axes, label="share of 4-bit weights", shrink=0.5)

    return svg(1.9 * len(shares), draw)


def tuning_losses(blocks: Sequence[dict[str, float] | None]) -> str:
    """Loss of every layer before and after tuning it by itself."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        tuned = [(index, loss) for index, loss in enumerate(blocks) if loss]
        for when in ("before", "after"):
            axes.plot([index for index, _ in tuned], [loss[when] for _, loss in tuned], label=when)
        axes.set(xlabel="layer", ylabel="loss", ylim=(0, None))
        axes.legend()

    return svg(2.5, draw)


def by_input(draw_panel: Callable[[Any, str], None], ylabel: str) -> str:
    """A panel for each of the four inputs of a layer, with one legend."""

    def draw(figure: Any) -> None:
        all_axes = figure.subplots(2, 2, sharex=True)
        for axes, name in zip(all_axes.flat, INPUTS, strict=True):
            draw_panel(axes, name)
            axes.set_title(f"input of {INPUTS[name]}")
            axes.set(ylabel=ylabel)
        for axes in all_axes[1]:
            axes.set(xlabel="layer")
        figure.legend(*all_axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)

    return svg(5, draw)


def input_ranges(layers: Sequence[LayerComparison]) -> str:
    """Smallest and largest value, and the two quantiles, of every input in both models."""

    def draw_panel(axes: Any, name: str) -> None:
        found = [layer.inputs[name] for layer in layers]
        for model, color in (("original", "C0"), ("quantized", "C3")):
            ranges = [getattr(comparison, model) for comparison in found]
            axes.plot([each.high for each in ranges], color=color, label=f"{model}, min and max")
            axes.plot([each.low for each in ranges], color=color)
            low, high = zip(*(each.quantiles for each in ranges), strict=True)
            axes.plot(high, color=color, linestyle=":", label=f"{model}, {TAIL:.1%} and {1 - TAIL:.1%}")
            axes.plot(low, color=color, linestyle=":")
        axes.set_yscale("symlog", linthresh=1)
        axes.minorticks_off()
        axes.axhline(0, color="0.8", linewidth=0.5)

    return by_input(draw_panel, "x")


def channel_ranges(layers: Sequence[LayerComparison]) -> str:
    """How the largest magnitude of a channel changes: median and 10th to 90th percentile over the channels."""

    def draw_panel(axes: Any, name: str) -> None:
        found = [layer.inputs[name] for layer in layers]
        ratios = [channel_ratios(each.original.channels, each.quantized.channels) for each in found]
        low, median, high = torch.stack(ratios, dim=1).tolist()
        axes.fill_between(range(len(layers)), low, high, color="C3", alpha=0.25, label="10th to 90th percentile")
        axes.plot(median, color="C3", label="median")
        axes.axhline(1, color="0.5", linewidth=0.5)

    return by_input(draw_panel, "quantized / original")


def channel_ratios(original: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """10th, 50th and 90th percentile of the channels' quotients, `[3]`; that of 0 and 0 is 1."""
    tiny = torch.finfo(torch.float32).tiny
    return ((quantized + tiny) / (original + tiny)).quantile(torch.tensor([0.1, 0.5, 0.9]))


def errors_and_drift(layers: Sequence[LayerComparison]) -> str:
    """Mean output error with and without quantized inputs, and how far the inputs have moved."""

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for label, key in (("the original's inputs", "same_inputs"), ("its own inputs", "own_inputs")):
            found = [[getattr(each, key).relative for each in layer.linears.values()] for layer in layers]
            left.plot([sum(errors) / len(errors) for errors in found], label=label)
        left.set(xlabel="layer", ylabel="mean relative output error, read from", ylim=(0, None))
        for name, label in INPUTS.items():
            right.plot([layer.inputs[name].drift.relative for layer in layers], label=label)
        right.set(xlabel="layer", ylabel="relative drift of the inputs of", ylim=(0, None))
        for axes in (left, right):
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)

    return svg(3, draw)


def output_maps(original: torch.Tensor, quantized: torch.Tensor) -> str:
    """Figure 3 (c) to (e): outputs `[tokens, N]` of a linear in both models and their difference, on one scale."""
    pictures = {"original": original, "quantized": quantized, "quantized - original": quantized - original}
    limit = float(original[:FIGURE_3_TOKENS].abs().max())
    # few colours, of which white is the middle one: the picture has half of the bytes
    colors = import_module("matplotlib").colormaps["RdBu_r"].resampled(33)

    def draw(figure: Any) -> None:
        all_axes = figure.subplots(1, len(pictures), sharey=True)
        for axes, (title, values) in zip(all_axes, pictures.items(), strict=True):
            cells = block_extremes(values[:FIGURE_3_TOKENS], FIGURE_3_CELLS).numpy()
            extent = (0, values.shape[1], len(cells) - 0.5, -0.5)
            scale = {"vmin": -limit, "vmax": limit, "cmap": colors}
            image = axes.imshow(cells, aspect="auto", interpolation="none", extent=extent, **scale)
            axes.set(title=title, xlabel="output channel")
        all_axes[0].set(ylabel="token")
        figure.colorbar(image, ax=all_axes)

    return svg(3, draw)


def output_densities(original: torch.Tensor, quantized: torch.Tensor) -> str:
    """Figure 4: frequency densities of a linear's outputs in both models, and their divergence."""
    low, high = (float(limit) for limit in torch.cat((original, quantized)).aminmax())
    high = max(high, low + 1e-6)  # outputs that are all alike
    counts = [torch.histc(values, BINS, low, high) for values in (original, quantized)]
    centres = torch.linspace(low, high, 2 * BINS + 1)[1::2].numpy()

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for label, count in zip(("original", "quantized"), counts, strict=True):
            density = count / count.sum() / ((high - low) / BINS)
            axes.plot(centres, density.numpy(), drawstyle="steps-mid", label=label)
        axes.set(xlabel="output", ylabel="density", yscale="log")
        axes.set_title(f"divergence of quantized from original: {density_divergence(*counts):.4f} nats")
        axes.legend()

    return svg(3, draw)


def density_divergence(original: torch.Tensor, quantized: torch.Tensor) -> float:
    """KL(quantized || original) of two histograms, each count raised by 1 so that no bin is empty, in nats."""
    ours, wanted = ((counts.double() + 1) / (counts.sum() + len(counts)) for counts in (quantized, original))
    return float((ours * (ours / wanted).log()).sum())
