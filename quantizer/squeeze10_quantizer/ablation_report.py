"""An ablation as Markdown tables, with what contradicts the paper in words, and as plots."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from squeeze10_quantizer.plotting import can_plot, say_no_plots

PLOT_SIZE: Final = (9, 3.5)
"""Inches."""
SAME: Final = 0.01
"""Values that differ by less than this part are in no order."""


def render(results: dict[str, Any]) -> str:
    """All tables in Markdown."""
    lines = [original_line(results)]
    for table in results["tables"]:
        lines += ["", f"## Table {table['number']}: {table['title']}, mask `{table['mask']}`", ""]
        lines += table_lines(table)
        lines += ["", *(contradictions(table) or ["Nothing here contradicts the paper's order."])]
    return "\n".join(lines) + "\n"


def original_line(results: dict[str, Any]) -> str:
    """The model itself."""
    found = [f"{name} {shown}" for name, shown in measured_cells(results["original"]).items()]
    return f"{results['model']}, original: {', '.join(found)}"


def measured_cells(row: dict[str, Any]) -> dict[str, str]:
    """Column to what is shown of the measures."""
    cells = {"perplexity": f"{row['perplexity']:.2f}"} if "perplexity" in row else {}
    for name, task in row.get("tasks", {}).items():
        cells[f"{name} in %"] = f"{100 * task['acc']:.1f} ± {100 * task['acc_stderr']:.1f}"
    return cells


def table_lines(table: dict[str, Any]) -> Iterator[str]:
    """A table in Markdown."""
    for place, row in enumerate(table["rows"]):
        cells = {
            table["column"]: row["label"],
            "bits": f"{row['bits']:.3f}",
            "layer error": f"{row['layer_error']:.4f}",
            **measured_cells(row),
            table["paper_column"]: "" if row["paper"] is None else f"{row['paper']:.2f}",
        }
        if place == 0:
            yield f"| {' | '.join(cells)} |"
            yield "|---|" + "--:|" * (len(cells) - 1)
        yield f"| {' | '.join(cells.values())} |"


def contradictions(table: dict[str, Any]) -> list[str]:
    """Where a row and the paper's own choice are in another order than in the paper, a sentence for each measure."""
    return [*contradictions_by(table, "perplexity"), *contradictions_by(table, "layer_error")]


def contradictions_by(table: dict[str, Any], key: str) -> Iterator[str]:
    """The same by one measure, of which less is better; none if it was not taken."""
    rows = [row for row in table["rows"] if key in row]
    for own in (row for row in rows if row["paper_better"] is None):
        worse = [row for row in rows if row["paper_better"] is False and row[key] < own[key] * (1 - SAME)]
        better = [row for row in rows if row["paper_better"] is True and row[key] > own[key] * (1 + SAME)]
        for against, says in ((worse, "worse"), (better, "better")):
            if against:
                named = ", ".join(f"{row['label']} ({row[key]:.4g})" for row in against)
                yield (
                    f"By {key.replace('_', ' ')} this contradicts the paper, which holds for {says} than its own "
                    f"choice, {own['label']} ({own[key]:.4g} here): {named}."
                )


def plot_table(table: dict[str, Any], folder: Path) -> None:
    """Write a table's plot, `table-NUMBER-MASK.svg`; without matplotlib, say that it is missing."""
    if not can_plot():
        say_no_plots()
        return
    figures = import_module("matplotlib.figure")
    keys = [key for key in ("perplexity", "layer_error") if key in table["rows"][0]]
    figure = figures.Figure(figsize=PLOT_SIZE, layout="constrained")
    figure.suptitle(f"{table['title']}, mask {table['mask']}")
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        draw_panel(axes, table, key)
    figure.savefig(folder / f"table-{table['number']}-{table['mask']}.svg", metadata={"Date": None})


def draw_panel(axes: Any, table: dict[str, Any], key: str) -> None:
    """One measure of all rows: points where the rows are named, else a line; perplexity on a logarithmic axis."""
    labels = [row["label"] for row in table["rows"]]
    values = [row[key] for row in table["rows"]]
    scale = "log" if key == "perplexity" else "linear"
    name = key.replace("_", " ")
    if table["number"] == 5:
        axes.plot(values[::-1], labels[::-1], "o")  # the first row on top
        axes.set(xlabel=name, xscale=scale)
        axes.tick_params(axis="x", which="both", rotation=45)
    else:
        axes.plot(labels, values, marker="o")
        axes.set(xlabel=table["column"], ylabel=name, yscale=scale)
