"""Faults of tensors in a well-formed file: missing, surplus, of another kind, or with values that are not lawful."""

import torch
from faults.spoiling import Q_PROJ, Tensors, add, config, tensor, tensors

from squeeze10_kernels.packing import pack_bits, unpack_bits

NAN, INFINITE = float("nan"), float("inf")
SUFFIXES = ("qweight", "qweight_salient", "scales", "channel_scales", "salient_mask")
DENSE = ("model.norm.weight", "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.input_layernorm.weight")
K_PROJ = "model.layers.0.self_attn.k_proj"
UP_PROJ = "model.layers.1.mlp.up_proj"


def drop(name: str):
    return tensors(lambda loaded: loaded.pop(name))


def put(name: str, index: tuple[int, ...], value: float):
    """Set one number of a tensor."""

    def change(before: torch.Tensor) -> torch.Tensor:
        before[index] = value
        return before

    return tensor(name, change)


def select(name: str, change):
    """Edit a packed mask as bits."""
    return tensor(name, lambda packed: pack_bits(change(unpack_bits(packed))))


def move_across_chunks(bits: torch.Tensor) -> torch.Tensor:
    """One salient channel fewer in the first chunk, one more in the last."""
    first, last = bits.view(2, -1)
    first[first.nonzero()[0]] = 0
    last[(1 - last).nonzero()[0]] = 1
    return bits


def flip_one(bits: torch.Tensor) -> torch.Tensor:
    bits.view(-1)[0] ^= 1
    return bits


def swap_two(bits: torch.Tensor) -> torch.Tensor:
    """As many salient channels, one of them another."""
    chunk = bits.view(2, -1)[0]
    one, zero = chunk.nonzero()[0], (1 - chunk).nonzero()[0]
    chunk[one], chunk[zero] = 0, 1
    return bits


def one_more(bits: torch.Tensor) -> torch.Tensor:
    """Mask `elements`: one bit too many."""
    bits.view(-1)[(1 - bits.view(-1)).nonzero()[0]] = 1
    return bits


def rename_layers(loaded: Tensors) -> None:
    """Tensors of GPT-2."""
    for name in list(loaded):
        loaded[name.replace("model.layers", "transformer.h")] = loaded.pop(name)


for suffix in SUFFIXES:
    add(f"missing_{suffix}", "A4", drop(f"{Q_PROJ}.{suffix}"), f"{Q_PROJ}.{suffix} is missing")
for name in DENSE:
    add(f"missing_{name}", "A4", drop(name), f"{name} is missing")
add("missing_bias", "A4", config(attention_bias=True), "q_proj.bias is missing")
add("surplus_weight", "A5", tensors(lambda t: t.update({f"{Q_PROJ}.weight": torch.zeros(1)})), "does not belong")
add("surplus_bias", "A5", tensors(lambda t: t.update({f"{Q_PROJ}.bias": torch.zeros(128)})), "does not belong")
add("surplus_layer", "A5", tensors(lambda t: t.update({"model.layers.2.norm": torch.zeros(1)})), "does not belong")

add("scales_bf16", "A6", tensor(f"{Q_PROJ}.scales", lambda t: t.view(torch.bfloat16)), "must be [128, 3] float16")
add("scales_i16", "A6", tensor(f"{Q_PROJ}.scales", lambda t: t.view(torch.int16)), "must be [128, 3] float16")
add("qweight_i8", "A6", tensor(f"{Q_PROJ}.qweight", lambda t: t.view(torch.int8)), "uint8")
add("mask_bool", "A6", tensor(f"{Q_PROJ}.salient_mask", lambda t: t.bool()), "uint8")
add("norm_i16", "A6", tensor("model.norm.weight", lambda t: t.view(torch.int16)), "floating-point dtype")
add("norm_u8", "A6", tensor("model.norm.weight", lambda t: t.byte()), "floating-point dtype")
add("embeddings_i64", "A6", tensor("model.embed_tokens.weight", lambda t: t.long()), "floating-point dtype")

for suffix in ("qweight", "qweight_salient", "scales"):
    add(f"transposed_{suffix}", "A7", tensor(f"{Q_PROJ}.{suffix}", lambda t: t.T), f"{suffix} must be [128, ")
add("transposed_down", "A7", tensor("model.layers.0.mlp.down_proj.qweight", lambda t: t.T), "down_proj.qweight must be")
add("rows_missing", "A7", tensor(f"{Q_PROJ}.qweight", lambda t: t[:-1]), "q_proj.qweight must be [128, ")
add("flat_qweight", "A7", tensor(f"{Q_PROJ}.qweight", lambda t: t.flatten()), "q_proj.qweight must be [128, ")
add("empty_scales", "A7", tensor(f"{Q_PROJ}.scales", lambda t: t[:0]), "q_proj.scales must be [128, 3]")
add("short_norm", "A7", tensor("model.norm.weight", lambda t: t[:-1]), "model.norm.weight must be [128]")
add("long_vocabulary", "A7", tensor("lm_head.weight", lambda t: t[:-1]), "lm_head.weight must be [320, 128]")

add("mask_empty", "A10", tensor(f"{Q_PROJ}.salient_mask", lambda t: t.zero_()), "salient_mask must select")
add("mask_full", "A10", tensor(f"{Q_PROJ}.salient_mask", lambda t: t.fill_(255)), "salient_mask must select")
add("mask_one_off", "A10", select(f"{Q_PROJ}.salient_mask", flip_one), "salient_mask must select")
add("mask_across_chunks", "A10", select(f"{Q_PROJ}.salient_mask", move_across_chunks), "channels in each chunk")
add("mask_of_one_copy", "A9", select(f"{K_PROJ}.salient_mask", swap_two), "must equal that of")
add("mask_of_last_copy", "A9", select(f"{UP_PROJ}.salient_mask", swap_two), "must equal that of")
add("elements_one_more", "A10", select(f"{Q_PROJ}.salient_mask", one_more), "must select 3280", base="elements")
add("elements_full", "A10", tensor(f"{UP_PROJ}.salient_mask", lambda t: t.fill_(255)), "must select", base="elements")

for label, value in {"nan": NAN, "infinite": INFINITE, "minus_infinite": -INFINITE}.items():
    for column, scale in enumerate(("s1", "s4", "z4")):
        add(f"{scale}_{label}", "A11", put(f"{UP_PROJ}.scales", (7, column), value), "scales must be finite")
for value in (NAN, INFINITE, 0, -1, 4.01, 65504):
    add(f"channel_scale_{value}", "A11", put(f"{UP_PROJ}.channel_scales", (5,), value), "must lie above 0")
add("channel_scale_copy", "A11", put(f"{K_PROJ}.channel_scales", (5,), 1.5), "must equal that of")
add("channel_scale_copy_elements", "A11", put(f"{K_PROJ}.channel_scales", (5,), 1.5), "must equal", base="elements")
for table in ("model.embed_tokens", "lm_head"):
    nan = put(f"{table}.scales", (3, 1), NAN)
    add(f"{table}_scale_nan", "A11", nan, f"{table}.scales must be finite", base="8-bit tables")
add("elements_scale_nan", "A11", put(f"{Q_PROJ}.scales", (0, 0), NAN), "scales must be finite", base="elements")
for label, value in {"nan": NAN, "infinite": INFINITE}.items():
    add(f"norm_{label}", "A11", put("model.norm.weight", (0,), value), "model.norm.weight must be finite")
    add(f"embedding_{label}", "A11", put("model.embed_tokens.weight", (319, 127), value), "must be finite")

add("other_model", "A18", tensors(rename_layers), "is missing")
add("tied_with_head", "A18", config(tie_word_embeddings=True), "lm_head.weight does not belong")
add("untied_without_head", "A18", drop("lm_head.weight"), "lm_head.weight is missing")
