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
| mean relative output error of a linear layer at quantization | {error:.4f} |

Serve it:

    pip install squeeze10-vllm
    vllm serve DIRECTORY --quantization squeeze10

Made with:

    {command}

Calibration: {calibration}, {samples} samples of {context} tokens.
Versions: {versions}; {machine}.

`squeeze10 verify DIRECTORY` checks every file; `squeeze10_report.json` has the error of every layer.
"""


def model_card(folder: Path, report: dict[str, Any]) -> str:
    """Markdown of the card, from the files already in `folder`."""
    summary = inspect_checkpoint(folder)
    errors = list(report["layers"].values())
    return TEMPLATE.format(
        model=report["model"],
        bits=summary["bits_per_weight"],
        model_bits=summary["model_bits_per_weight"],
        salient=summary["salient_ratio"],
        mask=summary["mask"],
        error=sum(errors) / len(errors),
        command=report["command"],
        calibration=report["calibration"],
        samples=report["recipe"]["samples"],
        context=report["recipe"]["context"],
        versions=json.dumps(report["versions"]).strip("{}").replace('"', ""),
        machine=report["machine"],
    )
