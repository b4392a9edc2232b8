"""What a running vLLM does to a model (weights again, sleep, adapters, drafts) leaves its answers right."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoint as tiny
import torch
from plugin.engine_process import run_script
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from squeeze10_kernels import WeightFormat

PROMPT = list(b"one two three four five one two three four five one two three ")
TABLES, WIDE_TABLES = WeightFormat(head_bits=4), WeightFormat(head_bits=8)
TIED = {"tie_word_embeddings": True}
RANK, ALPHA = 8, 16
pytestmark = pytest.mark.serve


def run_feature(path: Path, feature: str, **options: Any) -> dict[str, dict[str, list[float]]]:
    """Result of engine_features.py."""
    options |= {"dtype": "bfloat16"} | ({"gpu_memory_utilization": 0.1} if torch.cuda.is_available() else {})
    result: dict[str, dict[str, list[float]]]
    result, _ = run_script("engine_features.py", path, feature, ",".join(map(str, PROMPT)), **options)
    return result


def assert_agrees(answer: dict[str, list[float]], twin: LlamaForCausalLM) -> None:
    """Log probabilities of the prompt are transformers' in fp32, but for bf16's rounding."""
    tokens = torch.tensor([PROMPT])
    with torch.no_grad():
        expected = twin(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    assert expected.std() > 0.5
    assert (torch.tensor(answer["logprobs"]) - expected).abs().max() < 0.25


def twin_of(checkpoint: tiny.TinyCheckpoint) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(checkpoint.twin, dtype=torch.float32)


def test_other_weights_reach_every_layer(tmp_path: Path) -> None:
    """vLLM passes over an lm_head that is tied to the embeddings; it would answer from the weights before."""
    first, second = (tiny.build_checkpoint(tmp_path / str(seed), WIDE_TABLES, seed, **TIED) for seed in (0, 1))

    answers = run_feature(first.path, "reload", enforce_eager=True, weights_path=str(second.path))

    assert_agrees(answers["before"], twin_of(first))
    assert_agrees(answers["after"], twin_of(second))


def write_adapter(path: Path, layers: int) -> dict[str, torch.Tensor]:
    """A random LoRA adapter on q and v as PEFT writes it; what it adds to the weights, by name."""
    generator, tensors, added = torch.Generator().manual_seed(0), {}, {}
    for index in range(layers):
        for linear, N in (("q_proj", 128), ("v_proj", 64)):
            name = f"model.layers.{index}.self_attn.{linear}"
            a, b = 0.1 * torch.randn(RANK, 128, generator=generator), 0.1 * torch.randn(N, RANK, generator=generator)
            tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
            added[f"{name}.weight"] = ALPHA / RANK * b @ a
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "task_type": "CAUSAL_LM"}
    targets = {"target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "tiny"}
    (path / "adapter_config.json").write_text(json.dumps(config | targets))
    return added


@pytest.mark.gpu  # by hand on a CPU, which takes 40 s
@pytest.mark.parametrize("eager", [True, False])
def test_an_adapter_adds_to_the_quantized_weights(tmp_path: Path, eager: bool) -> None:
    checkpoint = tiny.build_checkpoint(tmp_path / "model", TABLES, **TIED)
    added = write_adapter(checkpoint.path / "adapter", layers=2)

    answers = run_feature(checkpoint.path, "lora", enforce_eager=eager)

    twin = twin_of(checkpoint)
    assert_agrees(answers["before"], twin)
    with torch.no_grad():
        for name, weight in added.items():
            twin.get_parameter(name).add_(weight)
    assert answers["after"]["logprobs"] != answers["before"]["logprobs"]
    assert_agrees(answers["after"], twin)


@pytest.mark.gpu
@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("feature", ["repeat", "chunks", "speculation", "sleep1", "sleep2"])
def test_a_feature_leaves_the_answer(tmp_path: Path, feature: str, eager: bool) -> None:
    """Prefix caching, chunked prefill, drafts by n-grams; weights put aside, or thrown away and read again."""
    checkpoint = tiny.build_checkpoint(tmp_path / "model", TABLES, **TIED)

    answers = run_feature(checkpoint.path, feature, enforce_eager=eager)

    for answer in answers.values():
        assert_agrees(answer, twin_of(checkpoint))
    assert answers["after"] == answers["before"] or feature == "repeat"
