"""llama.cpp's formats: a model as GGUF, its importance matrix, llama.cpp's own quantizer, and the weights back.

llama.cpp's 1- and 2-bit formats have blocks of 256 channels. Where 256 does not divide the channels it takes a format
of 4 to 5 bits instead; *folded* tensors, several rows written as one, keep the format that was asked for.
"""

import ctypes
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from squeeze10_kernels import BadInput
from squeeze10_kernels.checkpoint import read_json
from squeeze10_kernels.llama import LlamaShape, layer_prefix
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.demo_model import unpermute, weight_names

if TYPE_CHECKING:
    from gguf import GGUFWriter

BLOCK: Final = 256


def write_gguf(model: Path, path: Path, *, folded: bool) -> None:
    """Write a model directory as GGUF in fp32, with hyperparameters and without a tokenizer."""
    import gguf

    decoder = Decoder(model, torch.device("cpu"))
    writer = gguf.GGUFWriter(path, "llama")
    write_hyperparameters(writer, read_json(model / "config.json"), decoder.shape)
    for name in weight_names(decoder.shape):
        weight = permute(name, decoder.source.tensor(name).float(), decoder.shape)
        if folded and weight.ndim == 2:
            weight = fold(name, weight)
        writer.add_tensor(gguf_name(name, decoder.shape), weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_hyperparameters(writer: "GGUFWriter", config: dict[str, Any], shape: LlamaShape) -> None:
    """What llama.cpp must know of a LLaMA besides its tensors."""
    rope = config.get("rope_parameters") or config
    writer.add_block_count(shape.num_layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(shape.vocab)


def gguf_name(name: str, shape: LlamaShape) -> str:
    """A tensor's name in GGUF from its name in Hugging Face's directories."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.num_layers)
    found = names.get_name(name, try_suffixes=(".weight",))
    assert found is not None
    return str(found)


def permute(name: str, weight: torch.Tensor, shape: LlamaShape) -> torch.Tensor:
    """Inverse of `unpermute`: rows of q and k from halves of a head to pairs side by side."""
    heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def rows_folded(K: int) -> int:
    """Rows of K channels that fill whole blocks."""
    return BLOCK // math.gcd(K, BLOCK)


def fold(name: str, weight: torch.Tensor) -> torch.Tensor:
    """`[N, K]` to `[N / r, r K]`, r the fewest rows that fill whole blocks."""
    rows = rows_folded(weight.shape[1])
    if len(weight) % rows:
        raise BadInput(f"{name} must have a multiple of {rows} rows to be folded; got {len(weight)}; do not fold.")
    return weight.reshape(len(weight) // rows, -1)


def quantize_gguf(
    source: Path, out: Path, file_type: str, importance: dict[str, torch.Tensor], *, keep_tables: bool
) -> None:
    """Quantize a GGUF file by `llama_cpp.llama_model_quantize`.

    Args:
        file_type: Of llama.cpp, such as `IQ1_S`.
        importance: GGUF tensor name to mean squared inputs, one for each of a row's channels, fp32.
        keep_tables: Leave the embeddings and lm_head in bf16, else llama.cpp chooses.
    """
    import gguf
    import llama_cpp

    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()  # a name of NULL ends it
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name = name.encode()
        entry.data = ctypes.cast(values.data_ptr(), type(entry.data))
        entry.size = len(values)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}")
    params.imatrix = entries
    params.nthread = torch.get_num_threads()
    if keep_tables:
        params.token_embedding_type = params.output_tensor_type = int(gguf.GGMLQuantizationType.BF16)
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), params):
        raise BadInput(f"llama.cpp must be able to quantize {source} to {file_type}; it refused, see its messages.")


def importance_of(channels: dict[str, torch.Tensor], shape: LlamaShape, *, folded: bool) -> dict[str, torch.Tensor]:
    """Name of a linear to `[K]` in Hugging Face's names, to GGUF's names, repeated for folded rows."""
    return {
        gguf_name(f"{name}.weight", shape): values.repeat(rows_folded(len(values)) if folded else 1).contiguous()
        for name, values in channels.items()
    }


def read_gguf(path: Path, shape: LlamaShape) -> dict[str, torch.Tensor]:
    """Hugging Face's name, without `.weight`, of every tensor of a LLaMA to its dequantized weights, fp32."""
    import gguf

    sizes = {f"{name}.weight": size for name, size in linear_sizes(shape).items()} | shape.dense_tensors()
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    weights = {}
    for name in weight_names(shape):
        tensor = tensors[gguf_name(name, shape)]
        weight = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)).view(sizes[name])
        weights[name.removesuffix(".weight")] = unpermute(name, weight, shape).contiguous()
    return weights


def linear_sizes(shape: LlamaShape) -> dict[str, tuple[int, int]]:
    """Full name of every decoder linear to `(N, K)`."""
    layers = range(shape.num_layers)
    return {f"{layer_prefix(index)}.{name}": size for index in layers for name, size in shape.linears().items()}


def stored_bytes(path: Path, shape: LlamaShape) -> int:
    """Bytes of the decoder linears in a GGUF file."""
    import gguf

    linears = {gguf_name(f"{name}.weight", shape) for name in linear_sizes(shape)}
    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors if tensor.name in linears)
