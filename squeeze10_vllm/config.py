"""Squeeze10Config: what vLLM asks about a squeeze10 checkpoint, and which layers are quantized."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase

from squeeze10_kernels import BadInput, WeightFormat, format_from_config, open_checkpoint
from squeeze10_kernels.checkpoint import INDEX_NAME
from squeeze10_kernels.format import QUANT_METHOD
from squeeze10_kernels.llama import ARCHITECTURES, INPUT_GROUPS
from squeeze10_kernels.model_files import PICKLED
from squeeze10_vllm.versions import version_warning

logger = logging.getLogger("vllm.squeeze10")

QUANTIZED: Final = frozenset(linear for group in INPUT_GROUPS for linear in group)
"""The linears of a decoder layer that a checkpoint holds quantized, e.g. `self_attn.q_proj`."""
EXPERTS: Final = frozenset(("FusedMoE", "RoutedExperts"))
"""Class names of vLLM's expert layers; where they live differs between versions."""


class Squeeze10Config(QuantizationConfig):
    """The `quantization_config` of a squeeze10 checkpoint.

    Attributes:
        weight_format: How the linears lie on disk.
        layers: Quantized layers built in this process.
        loaded_layers: Those of them whose weights are ready.
        resident_bytes: Memory of their parameters.
        compiled: Output, input and salient features, and whether there is a bias, of layers whose kernels were run.
    """

    def __init__(self, weight_format: WeightFormat | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # vLLM's has no annotations
        if weight_format is None:  # vLLM found no quantization_config
            raise BadInput(
                "--quantization squeeze10 serves squeeze10 checkpoints, and config.json of this model has no "
                "quantization_config: leave the flag out to serve it as it is, or make a checkpoint with: "
                "squeeze10 quantize MODEL OUT."
            )
        self.weight_format = weight_format
        self.layers = 0
        self.loaded_layers = 0
        self.resident_bytes = 0
        self.compiled: set[tuple[int, int, int, bool]] = set()

    def __repr__(self) -> str:
        return f"Squeeze10Config({self.weight_format})"

    def get_name(self) -> str:  # type: ignore[override]  # vLLM types it as one of its own names
        return QUANT_METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Ampere: older GPUs have no bf16, the dtype of nearly all LLaMAs, and no test of ours covers them."""
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None: the settings are in config.json. Where they are not, vLLM calls `Squeeze10Config()`."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Squeeze10Config":
        """From the `quantization_config` of config.json; `BadInput` for what this release does not know."""
        warning = version_warning()
        if warning is not None:
            logger.warning(warning)
        return cls(format_from_config(config))

    def maybe_update_config(  # type: ignore[override]  # 0.26 lacks `revision`, which is not needed
        self, model_name: str, hf_config: Any = None, **kwargs: Any
    ) -> None:
        """Refuse at start a checkpoint that is incomplete, damaged or of another model; nothing is updated.

        Args:
            model_name: A local directory, which is checked, or a name on the Hub, whose tensors are checked as they
                load. A directory without any weights is left to vLLM (`--load-format dummy`).
            hf_config: The model's config.
            kwargs: What later releases of vLLM add.
        """
        architectures = getattr(hf_config, "architectures", None) or []
        if hf_config is not None and not set(architectures) & set(ARCHITECTURES):
            raise BadInput(
                f"squeeze10 serves {' and '.join(ARCHITECTURES)}; config.json of {model_name} says {architectures!r}."
            )
        directory = Path(model_name)
        if any(next(directory.glob(name), None) for name in ("*.safetensors", INDEX_NAME, *PICKLED)):
            with one_thread():
                open_checkpoint(directory)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """Our methods for the quantized linears of decoder layers and quantized tables, vLLM's own for the rest.

        Args:
            layer: A linear, embedding, attention or expert layer.
            prefix: Its name in vLLM's model, e.g. `model.layers.0.self_attn.qkv_proj`.
        """
        from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

        from squeeze10_vllm.linear import Squeeze10LinearMethod
        from squeeze10_vllm.table import Squeeze10TableMethod

        if EXPERTS & {base.__name__ for base in type(layer).__mro__}:
            raise BadInput(f"squeeze10 serves dense models; {prefix} is a mixture of experts.")
        if isinstance(layer, VocabParallelEmbedding) and self.weight_format.table_parts:
            # vLLM gives the embeddings no prefix
            return Squeeze10TableMethod(self, "lm_head" if isinstance(layer, ParallelLMHead) else "model.embed_tokens")
        if not isinstance(layer, LinearBase):
            return None  # attention, and embeddings and lm_head as in the original model
        names = self.checkpoint_names(prefix)
        if not names:
            return UnquantizedLinearMethod()
        return Squeeze10LinearMethod(self, names)

    def checkpoint_names(self, prefix: str) -> tuple[str, ...]:
        """The linears of the checkpoint that vLLM's layer `prefix` stacks; empty if it is not quantized.

        `model.layers.0.mlp.gate_up_proj` gives `model.layers.0.mlp.gate_proj` and `model.layers.0.mlp.up_proj`.
        """
        layer, _, name = prefix.rpartition(".")
        parts = self.packed_modules_mapping.get(name, [name])
        block = layer.rpartition(".")[2]
        quantized = [f"{block}.{part}" in QUANTIZED for part in parts]
        if ".layers." not in prefix or not any(quantized):
            return ()
        if not all(quantized):
            raise BadInput(f"{prefix} stacks {', '.join(parts)}, of which squeeze10 quantizes only some.")
        return tuple(f"{layer}.{part}" for part in parts)

    def layer_loaded(self, num_bytes: int, advice: str) -> None:
        """Count a layer whose weights are ready, and log one line after the last.

        Args:
            num_bytes: Memory of its parameters.
            advice: What the user should know of how such layers are served.
        """
        self.loaded_layers += 1
        self.resident_bytes += num_bytes
        if self.loaded_layers == self.layers:
            logger.info(
                "squeeze10: %d linear layers take %.1f MiB (%d bytes); %s",
                self.layers,
                self.resident_bytes / 2**20,
                self.resident_bytes,
                advice,
            )


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch without threads of its own.

    vLLM forks its engine from a script that has not used CUDA. OpenMP's threads do not outlive a fork, and the engine
    would wait for them for ever.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
