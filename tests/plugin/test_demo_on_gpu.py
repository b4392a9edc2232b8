"""The demo model in vLLM on a GPU says what its dequantized form says in transformers, but for bf16's rounding.

bf16 noise is, as in tests/e2e/test_serve.py, how far the log-probabilities of transformers' own two attention
implementations lie apart.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from plugin.engine_process import run_script
from transformers import AutoModelForCausalLM, AutoTokenizer

from squeeze10_quantizer.cli import main

MODEL = Path(__file__).resolve().parents[2] / "deploy" / "models" / "smollm2-135m-sq10"
TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) +",
    "In 1969 men walked on the moon for the first time; 3.14159 is nearly pi.",
    "Once upon a time there was a miller who had three sons, a mill, a donkey and a cat. " * 2,
)
BATCH, REPETITIONS = 64, 100
CHUNKS = {"max_num_batched_tokens": 128, "enable_chunked_prefill": True}
"""The batch has 2200 tokens of prompts."""
pytestmark = [pytest.mark.gpu, pytest.mark.serve]

Prompts = list[list[int]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dequantized model."""
    out = tmp_path_factory.mktemp("demo") / "plain"
    assert main(["dequantize", str(MODEL), str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def prompts(plain: Path) -> Prompts:
    tokenizer = AutoTokenizer.from_pretrained(plain)
    return [tokenizer(f"{number}. {TEXTS[number % len(TEXTS)]}")["input_ids"] for number in range(BATCH)]


@pytest.fixture(scope="module")
def twins(plain: Path) -> list[Any]:
    """With SDPA and with eager attention."""
    load = AutoModelForCausalLM.from_pretrained
    return [load(plain, dtype=torch.bfloat16, attn_implementation=kind).cuda() for kind in ("sdpa", "eager")]


def logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    """Of every token after every position, `[tokens - 1, vocabulary]`."""
    with torch.no_grad():
        scores: torch.Tensor = model(torch.tensor([ids]).cuda()).logits[0, :-1].float().log_softmax(-1)
    return scores.cpu()


def compare(answers: list[dict[str, list[Any]]], prompts: Prompts, twins: list[Any]) -> tuple[torch.Tensor, ...]:
    """The noise, vLLM's differences from SDPA, and by how much a greedy token of vLLM's falls short of the best."""
    noises, differences, gaps = [], [], []
    for answer, prompt in zip(answers, prompts, strict=True):
        ids = prompt + answer["tokens"]
        expected, other = (logprobs(twin, ids) for twin in twins)
        chosen = expected.gather(1, torch.tensor(ids)[1:, None])[:, 0]
        noises.append((expected - other).abs().flatten())
        differences.append((torch.tensor(answer["logprobs"]) - chosen).abs())
        gaps.append((expected.max(1).values - chosen)[-len(answer["tokens"]) :])
    return torch.cat(noises), torch.cat(differences), torch.cat(gaps)


@pytest.mark.parametrize("chunks", [{"enable_chunked_prefill": False}, CHUNKS], ids=["whole", "chunks"])
@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graphs"])
def test_log_probabilities_are_those_of_the_dequantized_model(
    tmp_path: Path, prompts: Prompts, twins: list[Any], eager: bool, chunks: dict[str, Any]
) -> None:
    """Alone and in a batch of 64; and the same request again and again has the same answer, bit for bit."""
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(prompts))

    options = {"enforce_eager": eager, "gpu_memory_utilization": 0.1} | chunks
    result, _ = run_script("engine_batches.py", MODEL, file, REPETITIONS, **options)

    for company in ("alone", "together"):
        noise, difference, gap = compare(result[company], prompts, twins)
        print(
            f"{company}: noise: mean {noise.mean():.4f}, largest {noise.max():.4f}; "
            f"vLLM: mean {difference.mean():.4f}, largest {difference.max():.4f}; "
            f"greedy tokens below the best {int((gap > 0).sum())} of {len(gap)}, by {gap.max():.4f} at most"
        )
        assert noise.max() > 0
        assert difference.mean() <= 3 * noise.mean()
        assert difference.max() <= 3 * noise.max()
        assert gap.max() <= 2 * noise.max()
    assert result["again"] == REPETITIONS * result["alone"][:1]
