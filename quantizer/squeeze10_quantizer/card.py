"""The checkpoint's README.md: what it is, its bits, how it was made."""

import json
from pathlib import Path
from typing import Any

from squeeze10_quantizer.inspection import inspect_checkpoint

TEMPLATE = """\
---
library_name: vllm
pipeline_tag: text-generation
tags:
- squeeze10
---

# {model}, {bits:.2f} bits per weight

{model}, quantized by squeeze10: {salient:.1%} of the decoder's linear weights in 4 bits, the others in 1 bit
(mask `{mask}`).

| | |
|---|--:|
| bits per weight, linear layers, every stored byte counted | {bits:.3f} |
| bits per weight, whole model | {model_bits:.3f} |
{error}
Serve it:

    pip install squeeze10-vllm
    vllm serve DIRECTORY --quantization squeeze10

Made with:

    {command}

Calibration: {calibration}, {samples} samples of {context} tokens.{tuning}
Versions: {versions}; {machine}.

`squeeze10 verify DIRECTORY` checks every file; `squeeze10_report.json` has the error of every layer.
"""
ERROR = "| mean relative output error of a linear layer at quantization | {:.4f} |\n"


def tuning(report: dict[str, Any]) -> str:
    """What was trained, on what; empty if nothing was."""
    recipe = report["recipe"]
    if recipe["tune"] == "none":
        return ""
    blocks = f"\nTuned: every decoder layer for at most {recipe['tune_steps']} steps"
    if recipe["tune"] == "blocks":
        return f"{blocks}."
    divergence = report["divergence"]
    what = "the model" if recipe["distill_codes"] else "the model's scales"
    return (
        f"{blocks}, then {what} for {recipe['distill_tokens']} tokens of {report['distillation']}: "
        f"divergence from the original {divergence['before']:.3f}, then {divergence['after']:.3f} nats a token."
    )


def model_card(folder: Path, report: dict[str, Any]) -> str:
    """Markdown of the card, from the files already in `folder`."""
    summary = inspect_checkpoint(folder)
    errors = [error for error in report["layers"].values() if error is not None]
    return TEMPLATE.format(
        model=report["model"],
        bits=summary["bits_per_weight"],
        model_bits=summary["model_bits_per_weight"],
        salient=summary["salient_ratio"],
        mask=summary["mask"],
        error=ERROR.format(sum(errors) / len(errors)) if errors else "",
        command=report["command"],
        calibration=report["calibration"],
        samples=report["recipe"]["samples"],
        context=report["recipe"]["context"],
        tuning=tuning(report),
        versions=json.dumps(report["versions"]).strip("{}").replace('"', ""),
        machine=report["machine"],
    )
