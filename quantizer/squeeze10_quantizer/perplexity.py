"""Perplexity of a text under a model: windows of `context` tokens without overlap."""

import math
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedModel

from squeeze10_kernels import BadInput
from squeeze10_quantizer.loading import load_model


def evaluate_text(
    path: Path, text: Path, *, context: int, max_tokens: int | None, dtype: torch.dtype, device: torch.device
) -> dict[str, float | int]:
    """Perplexity of the text file under the model directory or checkpoint at `path`.

    The text is tokenized as one string; within each window every token but the first is predicted.

    Returns:
        `perplexity`, and `tokens`: how many were predicted.
    """
    if not text.is_file():
        raise BadInput(f"The text {text} does not exist.")
    model = load_model(path, dtype, device)
    tokenizer = AutoTokenizer.from_pretrained(path)
    try:
        ids = tokenizer(text.read_text(encoding="utf-8"), verbose=False)["input_ids"][:max_tokens]
    except UnicodeDecodeError as error:
        raise BadInput(f"{text} must be UTF-8 text: {error}.") from error
    if len(ids) < 2:
        raise BadInput(f"{text} must have at least 2 tokens; it has {len(ids)}.")
    return perplexity(model, ids, context)


def perplexity(model: PreTrainedModel, ids: list[int], context: int) -> dict[str, float | int]:
    """`evaluate_text` of token ids, of which there are two at least."""
    windows = torch.tensor(ids).split(context)
    windows = [window for window in windows if len(window) == context] or [
        window for window in windows if len(window) > 1
    ]
    total = sum(window_loss(model, window.to(model.device)) for window in tqdm(windows, unit="window", desc="eval"))
    predicted = sum(len(window) - 1 for window in windows)
    return {"perplexity": math.exp(total / predicted), "tokens": predicted}


@torch.no_grad()
def window_loss(model: PreTrainedModel, window: torch.Tensor) -> float:
    """Sum of the negative log-likelihoods of a window `[tokens]` after its first token."""
    logits = model(window[None]).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
