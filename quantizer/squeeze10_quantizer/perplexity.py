"""Perplexity of a text under a model: windows of `context` tokens without overlap."""

import math
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from squeeze10_kernels import BadInput


def read_text(path: Path) -> str:
    """A text file in UTF-8."""
    if not path.is_file():
        raise BadInput(f"The text {path} does not exist.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} must be UTF-8 text: {error}.") from error


def evaluate_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, context: int, max_tokens: int | None
) -> dict[str, float | int]:
    """Perplexity of the text under the model.

    The text is tokenized as one string; within each window every token but the first is predicted.

    Returns:
        `perplexity`, and `tokens`: how many were predicted.
    """
    ids = tokenizer(text, verbose=False)["input_ids"][:max_tokens]
    if len(ids) < 2:
        raise BadInput(f"The text must have at least 2 tokens; it has {len(ids)}; give a longer one.")
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
