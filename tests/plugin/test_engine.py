"""A real vLLM engine on a tiny checkpoint says what transformers says of its dequantized twin."""

from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoint as tiny
import torch
from plugin.engine_process import run_script
from transformers import LlamaForCausalLM

from squeeze10_kernels import WeightFormat

PROMPT = list(b"The quick brown fox jumps over the lazy dog, twice a day. " * 3)
"""174 tokens: the prompt takes the path of many tokens, generation that of few."""
TIED = {"tie_word_embeddings": True, "vocab_size": 321, "attention_bias": True}


def run_engine(path: Path, dtype: str, **options: Any) -> tuple[dict[str, Any], str]:
    """Result and log of engine_logprobs.py."""
    return run_script("engine_logprobs.py", path, dtype, ",".join(map(str, PROMPT)), **options)


def twin_logprobs(twin: Path) -> torch.Tensor:
    """Log probability of each token of the prompt after the first."""
    model = LlamaForCausalLM.from_pretrained(twin, dtype=torch.float32)
    tokens = torch.tensor([PROMPT])
    with torch.no_grad():
        logprobs = model(tokens).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(1, tokens[0, 1:, None])[:, 0]


@pytest.mark.serve
def test_tied_4_bit_tables_agree_with_transformers(tmp_path: Path) -> None:
    """One table in two roles: rows are looked up, and all of it is multiplied; 321 rows are padded.

    In bf16, which rounds every activation, with int4 weights and torch.compile around the op.
    """
    checkpoint = tiny.build_checkpoint(tmp_path / "model", WeightFormat(head_bits=4), **TIED)

    result, log = run_engine(checkpoint.path, "bfloat16")

    expected = twin_logprobs(checkpoint.twin)
    assert expected.std() > 0.5  # a model that says something, so that agreement means something
    assert log.count("squeeze10: 8 linear layers take") == 1
    assert (torch.tensor(result["logprobs"]) - expected).abs().max() < 0.25


@pytest.mark.serve
def test_two_ranks_agree_with_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes and a real all-reduce: each rank loads its rows or chunks, and its part of a tied 8-bit table."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else vLLM wants a NUMA node for each rank
    sizes = {"hidden_size": 512, "intermediate_size": 768, "head_dim": 128}
    checkpoint = tiny.build_checkpoint(tmp_path / "model", WeightFormat(chunks=2, head_bits=8), **(TIED | sizes))

    result, _ = run_engine(checkpoint.path, "float32", enforce_eager=True, tensor_parallel_size=2)

    expected = twin_logprobs(checkpoint.twin)
    assert expected.std() > 0.5
    assert (torch.tensor(result["logprobs"]) - expected).abs().max() < 1e-4


@pytest.mark.serve
def test_dummy_load_serves(tmp_path: Path) -> None:
    """`--load-format dummy` needs config.json only: sizes and speed can be tried without weights."""
    checkpoint = tiny.build_checkpoint(tmp_path / "model", WeightFormat())
    (checkpoint.path / "model.safetensors").unlink()
    result, _ = run_engine(checkpoint.path, "bfloat16", enforce_eager=True, load_format="dummy")
    assert len(result["tokens"]) == 8


@pytest.mark.gpu
@pytest.mark.parametrize("head_bits", [16, 8, 4])
def test_flags_for_speed_leave_the_answer(tmp_path: Path, head_bits: int) -> None:
    """Inductor's kernels start beside the launch ahead, and ours wait for it: an early read gives other numbers."""
    checkpoint = tiny.build_checkpoint(tmp_path / "model", WeightFormat(head_bits=head_bits))
    overlap = {"inductor_compile_config": {"triton.enable_pdl": True}}
    flags = {
        "compilation_config": overlap,
        "attention_config": {"backend": "TRITON_ATTN"},
        "gpu_memory_utilization": 0.1,
    }

    result, log = run_engine(checkpoint.path, "bfloat16", **flags)

    expected = twin_logprobs(checkpoint.twin)
    assert expected.std() > 0.5
    assert (torch.tensor(result["logprobs"]) - expected).abs().max() < 0.25
    assert "TRITON_ATTN" in log
