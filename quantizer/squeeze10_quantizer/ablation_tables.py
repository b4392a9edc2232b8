"""The variants of the paper's ablations, Tables 3 to 6 of arXiv 2507.18073, and what stands there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from squeeze10_kernels import WeightFormat
from squeeze10_kernels.format import SALIENT_BITS, Mask
from squeeze10_kernels.llama import LlamaShape
from squeeze10_quantizer.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to quantize the model.

    Attributes:
        salient_bits: Of the salient part, and of the stage before it; the format stores 4 only.
    """

    recipe: Recipe
    salient_bits: int = SALIENT_BITS

    @property
    def name(self) -> str:
        """Tells variants of one run apart, also as a file's name."""
        recipe = self.recipe
        pbar = f"pbar{recipe.pbar_weight:g}" if recipe.pbar else "nopbar"
        parts = (
            recipe.mask,
            f"{recipe.salient_ratio:g}x{self.salient_bits}",
            "staged" if recipe.staged else "direct",
            pbar,
            "fias" if recipe.fias else "nofias",
        )
        return "-".join(parts)

    def bits(self, shape: LlamaShape, weight_format: WeightFormat) -> float:
        """Bits per weight of the decoder linears: their tensors in the format, widened to `salient_bits`.

        Headers and biases do not count.
        """
        stored = weights = 0
        for N, K in shape.linears().values():
            specs = weight_format.tensor_specs(N, K).values()
            stored += 8 * sum(math.prod(size) * dtype.itemsize for size, dtype in specs)
            stored += (self.salient_bits - SALIENT_BITS) * weight_format.salient_weights(N, K)
            weights += N * K
        return stored / weights


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table.

    Attributes:
        paper: The paper's number, if it has one.
        paper_better: Whether the paper holds this for better than its own choice; None for that choice itself.
    """

    label: str
    variant: Variant
    paper: float | None
    paper_better: bool | None = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table under one mask; the first column says what varies.

    Attributes:
        paper_column: What the paper's numbers are.
    """

    number: int
    title: str
    column: str
    paper_column: str
    mask: Mask
    rows: list[Row]


WIDTHS: Final = {2: 50.12, 3: 52.01, 4: 64.25, 5: 57.46, 6: 49.09, 7: 48.78, 8: 50.12}
RATIOS: Final = {0.6: 4.01, 0.5: 4.13, 0.4: 4.22, 0.3: 4.36, 0.2: 4.74, 0.1: 7.05}
WEIGHTS: Final = {1e-2: 14.03, 1e-3: 9.99, 3e-4: 9.96, 1e-4: 10.01, 1e-5: 10.10}
PARTS: Final[tuple[tuple[str, tuple[str, ...], float | None], ...]] = (
    ("all parts", (), 64.56),
    ("without PBAR", ("pbar",), 64.33),
    ("without FIAS", ("fias",), 62.19),
    ("without staging", ("staged",), None),
    ("without PBAR and FIAS", ("pbar", "fias"), 61.25),
    ("without PBAR, FIAS and staging", ("pbar", "fias", "staged"), 56.43),
)


def make_table(number: int, base: Recipe) -> Table:
    """The paper's table of this number under the mask of `base`; Table 5 sets all three parts itself."""
    return MAKERS[number](base)


def bits_table(base: Recipe) -> Table:
    """Table 3."""
    rows = [Row(str(bits), Variant(base, bits), paper, None if bits == 4 else False) for bits, paper in WIDTHS.items()]
    return Table(3, "bits of the salient part", "salient bits", "paper: LLaMA2-7B, WinoGrande in %", base.mask, rows)


def ratio_table(base: Recipe) -> Table:
    """Table 4."""
    rows = [
        Row(f"{ratio:.0%}", Variant(replace(base, salient_ratio=ratio)), paper, None if ratio == 0.2 else ratio > 0.2)
        for ratio, paper in RATIOS.items()
    ]
    return Table(4, "share of salient weights", "share", "paper: LLaMA2-70B, WikiText2 perplexity", base.mask, rows)


def parts_table(base: Recipe) -> Table:
    """Table 5; the paper leaves out staging only together with the rest."""
    rows = []
    for label, off, paper in PARTS:
        recipe = replace(base, pbar="pbar" not in off, fias="fias" not in off, staged="staged" not in off)
        rows.append(Row(label, Variant(recipe), paper, False if off else None))
    return Table(5, "parts of the method", "parts", "paper: LLaMA2-7B, WinoGrande in %", base.mask, rows)


def weight_table(base: Recipe) -> Table:
    """Table 6."""
    rows = [
        Row(f"{weight:g}", Variant(replace(base, pbar_weight=weight)), paper, None if weight == 3e-4 else False)
        for weight, paper in WEIGHTS.items()
    ]
    return Table(6, "weight of the activation range", "λ", "paper: LLaMA2-7B, WikiText2 perplexity", base.mask, rows)


MAKERS: Final = {3: bits_table, 4: ratio_table, 5: parts_table, 6: weight_table}


def variants_of(tables: Sequence[Table]) -> list[Variant]:
    """All variants, each once: tables share some."""
    return list(dict.fromkeys(row.variant for table in tables for row in table.rows))
