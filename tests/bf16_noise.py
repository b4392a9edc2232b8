"""Whether vLLM's answers in bf16 are those of the dequantized model in transformers, but for rounding.

bf16 noise is how far the log-probabilities of transformers' own two attention implementations lie apart on the same
tokens. vLLM may differ by 3x the largest noise at most, and on average by 3x the average noise, which is much less than
the largest; a greedy token may fall short of the best one by the noise of both.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM

PROMPTS: Final = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) +",
    "In 1969 men walked on the moon for the first time; 3.14159 is nearly pi.",
    "Once upon a time there was a miller who had three sons, a mill, a donkey and a cat. " * 2,
)

Answer = tuple[list[int], list[float], int]
"""Tokens of a prompt and its greedy answer, log-probabilities of all after the first, how many are the answer's."""


def load_twins(plain: Path, device: str = "cpu") -> list[Any]:
    """The dequantized model with SDPA, which is the oracle, and with eager attention."""
    load = AutoModelForCausalLM.from_pretrained
    return [load(plain, dtype=torch.bfloat16, attn_implementation=kind).to(device) for kind in ("sdpa", "eager")]


def logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of the next token after every position but the last, `[tokens - 1, vocabulary]` fp32."""
    with torch.no_grad():
        scores: torch.Tensor = model(torch.tensor([ids], device=model.device)).logits[0, :-1].float().log_softmax(-1)
    return scores.cpu()


def assert_within_noise(twins: list[Any], answers: Iterable[Answer]) -> None:
    """Compare vLLM's answers with those of the twins."""
    noises, differences, gaps = [], [], []
    for ids, given, count in answers:
        expected, other = (logprobs(twin, ids) for twin in twins)
        chosen = expected.gather(1, torch.tensor(ids)[1:, None])[:, 0]
        noises.append((expected - other).abs().flatten())
        differences.append((torch.tensor(given) - chosen).abs())
        gaps.append((expected.max(1).values - chosen)[-count:])
    noise, difference, gap = torch.cat(noises), torch.cat(differences), torch.cat(gaps)
    print(
        f"noise: mean {noise.mean():.4f}, largest {noise.max():.4f}; "
        f"vLLM: mean {difference.mean():.4f}, largest {difference.max():.4f}; "
        f"greedy tokens below the best {int((gap > 0).sum())} of {len(gap)}, by {gap.max():.4f} at most"
    )
    assert noise.max() > 0
    assert difference.mean() <= 3 * noise.mean()
    assert difference.max() <= 3 * noise.max()
    assert gap.max() <= 2 * noise.max()
