"""The demo model in vLLM on a GPU says what its dequantized form says in transformers, but for bf16's rounding."""

import json
from pathlib import Path
from typing import Any

import pytest
from bf16_noise import PROMPTS, assert_within_noise, load_twins
from plugin.engine_process import run_script
from transformers import AutoTokenizer

from squeeze10_quantizer.cli import main

MODEL = Path(__file__).resolve().parents[2] / "deploy" / "models" / "smollm2-135m-sq10"
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
    return [tokenizer(f"{number}. {PROMPTS[number % len(PROMPTS)]}")["input_ids"] for number in range(BATCH)]


@pytest.mark.parametrize("chunks", [{"enable_chunked_prefill": False}, CHUNKS], ids=["whole", "chunks"])
@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graphs"])
def test_log_probabilities_are_those_of_the_dequantized_model(
    tmp_path: Path, plain: Path, prompts: Prompts, eager: bool, chunks: dict[str, Any]
) -> None:
    """Alone and in a batch of 64; and the same request again and again has the same answer, bit for bit."""
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(prompts))

    options = {"enforce_eager": eager, "gpu_memory_utilization": 0.1} | chunks
    result, _ = run_script("engine_batches.py", MODEL, file, REPETITIONS, **options)

    twins = load_twins(plain, "cuda")
    for company in ("alone", "together"):
        answers = zip(prompts, result[company], strict=True)
        assert_within_noise(
            twins, [(ids + said["tokens"], said["logprobs"], len(said["tokens"])) for ids, said in answers]
        )
    assert result["again"] == REPETITIONS * result["alone"][:1]
