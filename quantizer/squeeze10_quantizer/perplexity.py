"""Perplexity of a text under a model, and how far its predictions lie from another's.

A text is tokenized as one string and read in windows of `context` tokens without overlap; within each window every
token but the first is predicted.
"""

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

    Returns:
        `perplexity`, and `tokens`: how many were predicted.
    """
    return perplexity(model, token_ids(tokenizer, text, max_tokens), context)


def compare_on_text(
    model: PreTrainedModel,
    original: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    context: int,
    max_tokens: int | None,
) -> dict[str, float]:
    """How far the model's predictions lie from the original's, over the tokens that `evaluate_text` predicts.

    Returns:
        `divergence`: mean KL(original || model) in nats a token, and `agreement`: share of tokens for which both
        think the same one the likeliest.
    """
    if model.config.vocab_size != original.config.vocab_size:
        sizes = f"{model.config.vocab_size} and {original.config.vocab_size}"
        raise BadInput(f"Models that are compared must have one vocabulary; theirs have {sizes} tokens.")
    windows = windows_of(token_ids(tokenizer, text, max_tokens), context)
    shown = tqdm(windows, unit="window", desc="compare")
    sums = torch.stack([window_distance(model, original, window.to(model.device)) for window in shown]).sum(0)
    divergence, agreement = (sums / sum(len(window) - 1 for window in windows)).tolist()
    return {"divergence": divergence, "agreement": agreement}


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int | None) -> list[int]:
    """The first tokens of a text."""
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"][:max_tokens]
    if len(ids) < 2:
        raise BadInput(f"The text must have at least 2 tokens; it has {len(ids)}; give a longer one.")
    return ids


def windows_of(ids: list[int], context: int) -> list[torch.Tensor]:
    """The whole windows of at least two tokens, or the one that is too short to be whole."""
    windows = torch.tensor(ids).split(context)
    return [window for window in windows if len(window) == context] or [window for window in windows if len(window) > 1]


def perplexity(model: PreTrainedModel, ids: list[int], context: int) -> dict[str, float | int]:
    """`evaluate_text` of token ids, of which there are two at least."""
    windows = windows_of(ids, context)
    total = sum(window_loss(model, window.to(model.device)) for window in tqdm(windows, unit="window", desc="eval"))
    predicted = sum(len(window) - 1 for window in windows)
    return {"perplexity": math.exp(total / predicted), "tokens": predicted}


@torch.no_grad()
def window_loss(model: PreTrainedModel, window: torch.Tensor) -> float:
    """Sum of the negative log-likelihoods of a window `[tokens]` after its first token."""
    logits = model(window[None]).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))


@torch.no_grad()
def window_distance(model: PreTrainedModel, original: PreTrainedModel, window: torch.Tensor) -> torch.Tensor:
    """Sums over a window `[tokens]`: of the divergence, and of the tokens on which both agree, `[2]` fp64."""
    ours, wanted = (each(window[None]).logits[0, :-1].float().log_softmax(-1) for each in (model, original))
    divergence = torch.nn.functional.kl_div(ours, wanted, log_target=True, reduction="none").sum(-1)
    agreement = ours.argmax(-1) == wanted.argmax(-1)
    return torch.stack((divergence.double().sum(), agreement.double().sum())).cpu()
