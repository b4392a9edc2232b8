"""Faults of config.json and its neighbours."""

from typing import Any

from faults.spoiling import add, config, content, quantization, replaced

LAYERS = "num_hidden_layers"
HIDDEN_KEY = b'"hidden_size": 128'


def one(key: str, value: Any, says: str, **more: Any) -> None:
    """Register a wrong entry of config.json."""
    add(f"{key}_{value!s:.24}", more.pop("kind", "A14"), config(**{key: value}), says, **more)


for label, data in {
    "empty": b"", "broken": b"{", "deep": b'{"a":' * 100_000, "bom": b"\xef\xbb\xbf{}", "utf16": "{}".encode("utf-16"),
    "two": b"{}{}", "huge": b'{"a":"' + b"x" * (5 * 2**20) + b'"}',
}.items():  # fmt: skip
    add(f"config_{label}", "A13", content("config.json", data), "must hold")
add("config_list", "A13", content("config.json", b"[]"), "must hold a JSON object")
add("config_null", "A13", content("config.json", b"null"), "must hold a JSON object")
twice = replaced("config.json", HIDDEN_KEY, HIDDEN_KEY + b', "hidden_size": 64')
add("config_name_twice", "A13", twice, "stands twice")
for label, number in {"1e999": b"1e999", "nan": b"NaN", "infinity": b"-Infinity"}.items():
    add(f"config_{label}", "A14", replaced("config.json", b"10000.0", number), "is no finite number")
add("config_5000_digits", "A14", replaced("config.json", HIDDEN_KEY, HIDDEN_KEY + b"9" * 5000), "more than 40 digits")

# `eval` takes both kinds of directory: to it this is an unquantized model, whose weights it then misses
NOT_EVAL = {"readers": ("verify", "inspect", "dequantize", "plugin")}
for value in ("gptq", "", 7, ["squeeze10"]):
    add(f"quant_method_{value!s}", "A14", quantization(quant_method=value), "quant_method must be", **NOT_EVAL)
add("no_quantization", "A14", config(quantization_config=None), "is not quantized", **NOT_EVAL)
add("quantization_list", "A14", config(quantization_config=[]), "is not quantized", **NOT_EVAL)
for value in (0, 2, 10**9, "1", True, 1.0, None):
    add(f"format_version_{value!r}", "A14", quantization(format_version=value), "reads format_version 1")
for key in ("group_size", "bits", "ignore", "auto_map", "modules_to_not_convert"):
    add(f"quantization_{key}", "A14", quantization(**{key: 0}), f"unknown key '{key}'")
for key, values in {
    "mask": ("rows", None, 1, ["columns"], "elements"),
    "salient_ratio": (-0.1, 1.1, "0.2", True, None, [0.2]),
    "chunks": (0, -1, 3, 16, 2**31, 2.0, "2", None, True),
    "head_bits": (2, 0, "4", True, 16.0),
}.items():
    for value in values:
        add(f"{key}_{value!r}", "A8", quantization(**{key: value}), f"{key}")
add("salient_ratio_other", "A8", quantization(salient_ratio=0.5), "q_proj.qweight must be")
add("chunks_other", "A8", quantization(chunks=8), "must be")
add("head_bits_other", "A8", quantization(head_bits=4), "embed_tokens.qweight is missing")
for real, declared, says in ((4, 8, "qweight_salient must be"), (8, 4, "qweight_salient must be"), (8, 16, "embed")):
    base = f"{real}-bit tables"
    add(f"head_bits_{real}_as_{declared}", "A8", quantization(head_bits=declared), says, base=base)

for key in ("hidden_size", "intermediate_size", "num_attention_heads", LAYERS, "vocab_size", "num_key_value_heads"):
    for value in (0, -1, "128", 1.5, True, [1], 2**31, 10**18):
        one(key, value, "", kind="A15")
one(LAYERS, 10**9, "at most 10000")
one(LAYERS, 10_000, "model.layers.2.self_attn.q_proj.qweight is missing")
one(LAYERS, 1, "does not belong")
one("hidden_size", 64, "must be", kind="A7")
one("hidden_size", 136, "must be", kind="A7")
one("intermediate_size", 512, "must be", kind="A7")
one("num_key_value_heads", 4, "k_proj.qweight must be", kind="A7")
one("num_key_value_heads", 3, "must be a multiple of", kind="A7")
one("head_dim", 16, "must be", kind="A7")
one("head_dim", 0, "must be a positive integer")
one("vocab_size", 64, "must be", kind="A7")
one("attention_bias", "yes", "must be true or false")
one("tie_word_embeddings", 1, "must be true or false")
add("odd_head_dim", "A7", config(num_attention_heads=128, num_key_value_heads=64, head_dim=1), "must be even")
for value in ("MixtralForCausalLM", ["MixtralForCausalLM"], ["LlamaForCausalLM"] * 2, [], [["LlamaForCausalLM"]], [1]):
    one("architectures", value, "architectures must be one of")
for value in ("gpt2", "mistral", "no_such_model", 7, ["llama"]):
    one("model_type", value, "model_type must be 'llama'")
add("model_type_missing", "A14", config(model_type=None), "model_type must be 'llama'")
for value in (10**12, -1, "2", 2**31):
    one("num_labels", value, "num_labels must be from 0 to 10000")

code = {"AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None], "AutoConfig": "evil.Config"}
one("auto_map", code, "names code to run under 'auto_map'")
one("custom_pipelines", code, "names code to run under 'custom_pipelines'")
one("attn_implementation", "evil/kernel", "names a repository of kernels")
one("_attn_implementation", "evil/kernel@main:load", "names a repository of kernels")
one("attn_implementation", {"": "evil/kernel"}, "names a repository of kernels")
tokenizer = b'{"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", null]}}'
add("tokenizer_auto_map", "A14", content("tokenizer_config.json", tokenizer), "names code to run under 'auto_map'")
add("tokenizer_config_broken", "A14", content("tokenizer_config.json", b"{"), "must hold JSON")

# what only transformers computes with: vLLM builds its own model from these, and says so itself
for key, value in {
    "hidden_act": "evil", "rms_norm_eps": "x", "rope_theta": "x", "rope_scaling": {"rope_type": "evil"},
    "max_position_embeddings": "9", "rope_parameters": [1],
}.items():  # fmt: skip
    one(key, value, "is no LLaMA's", readers=("eval",))
report = content("squeeze10_report.json", b'{"layers": {"a": "<b>"}}')
add("report_of_strings", "A14", report, "must map names of linears to numbers", readers=("inspect",))
report = content("squeeze10_report.json", b'{"layers": []}')
add("report_list", "A14", report, "must map names of linears to numbers", readers=("inspect",))
add("report_broken", "A14", content("squeeze10_report.json", b"{"), "must hold JSON", readers=("inspect",))
