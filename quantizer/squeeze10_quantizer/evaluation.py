"""What `squeeze10 eval` finds, of a model directory or of a model that is served."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from squeeze10_kernels.checkpoint import read_config
from squeeze10_quantizer.loading import load_model
from squeeze10_quantizer.measures import Measures
from squeeze10_quantizer.perplexity import compare_on_text
from squeeze10_quantizer.tasks import evaluate_endpoint


def evaluate_model(
    path: Path, against: Path | None, measures: Measures, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """The measures of a checkpoint or model; with `against`, its distance from that one on the measures' text."""
    model = load_model(path, dtype, device)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    result = measures.take(model, tokenizer)
    if against and measures.text is not None:
        original = load_model(against, dtype, device)
        result |= compare_on_text(
            model, original, tokenizer, measures.text, context=measures.context, max_tokens=measures.max_tokens
        )
    return result


def evaluate_served(url: str, served_model: str, path: Path, measures: Measures) -> dict[str, Any]:
    """The measures' tasks of the model that an endpoint serves; its directory gives the tokenizer."""
    read_config(path)  # names no code to run
    return {"tasks": evaluate_endpoint(url, served_model, path, measures.tasks, measures.batch)}


def evaluation_lines(result: dict[str, Any]) -> Iterator[str]:
    """What was found, a line each."""
    if "perplexity" in result:
        yield f"perplexity {result['perplexity']:.4f}, {result['tokens']} tokens"
    if "divergence" in result:
        yield f"divergence {result['divergence']:.4f} nats a token, the same likeliest token {result['agreement']:.2%}"
    for name, found in result.get("tasks", {}).items():
        metrics = [metric for metric in ("acc", "acc_norm") if metric in found]
        shown = [f"{metric} {found[metric]:.4f} ± {found[f'{metric}_stderr']:.4f}" for metric in metrics]
        yield f"{name}: {', '.join(shown)}, {found['items']} items"
