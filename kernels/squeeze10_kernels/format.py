"""Format version 1: the single source of truth for names, shapes, dtypes and config keys (see FORMAT.md)."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Literal, get_args

import torch

from squeeze10_kernels.errors import BadInput

QUANT_METHOD: Final = "squeeze10"
FORMAT_VERSION: Final = 1

Mask = Literal["columns", "elements"]

BINARY_BITS: Final = 1
SALIENT_BITS: Final = 4
SALIENT_OFFSET: Final = 8
"""A 4-bit code stands for `code - 8`."""
CHANNEL_QUANTUM: Final = 8
"""Both classes of a chunk hold a multiple of 8 channels, so that a slice of chunks is a slice of bytes."""
MAX_CHANNEL_SCALE: Final = 4.0
"""Activations up to 16 000 times this stay finite in fp16."""
HEAD_BITS: Final = (16, 8, 4)
"""Of the embeddings and lm_head: as they are, or quantized as one or two parts of `TABLE_FORMAT`."""

FORMAT_KEYS: Final = ("mask", "salient_ratio", "chunks", "head_bits")
CONFIG_KEYS: Final = ("quant_method", "format_version", *FORMAT_KEYS)

TensorSpec = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How the decoder linears of one model lie on disk.

    Attributes:
        mask: `columns`: one choice of 4-bit input channels for all rows. `elements`: any weight may be 4-bit.
        salient_ratio: Share of 4-bit weights asked for, 0 to 1; the achieved share is rounded (see below).
        chunks: Equal parts of every input, each with the same number of salient channels; 1 for `elements`.
        head_bits: Of the embeddings and lm_head, 16, 8 or 4.
    """

    mask: Mask = "columns"
    salient_ratio: float = 0.2
    chunks: int = 1
    head_bits: int = 16

    def __post_init__(self) -> None:
        if self.mask not in get_args(Mask):
            raise BadInput(f"mask must be one of {', '.join(get_args(Mask))}; got {self.mask!r}.")
        if type(self.salient_ratio) not in (int, float) or not 0 <= self.salient_ratio <= 1:
            raise BadInput(f"salient_ratio must be a number from 0 to 1; got {self.salient_ratio!r}.")
        if type(self.chunks) is not int or self.chunks not in (1, 2, 4, 8):
            raise BadInput(f"chunks must be 1, 2, 4 or 8; got {self.chunks!r}.")
        if self.mask == "elements" and self.chunks != 1:
            raise BadInput(f"mask elements has no chunks, so chunks must be 1; got {self.chunks}.")
        if type(self.head_bits) is not int or self.head_bits not in HEAD_BITS:
            raise BadInput(
                f"head_bits must be 16 (embeddings and lm_head as they are), 8 or 4; got {self.head_bits!r}."
            )

    def salient_channels(self, K: int) -> int:
        """4-bit channels of an input of K channels under mask `columns`: the same number in every chunk.

        Per chunk the multiple of 8 nearest to its share, halves up. So a slice of chunks has the count of a layer
        of that width.
        """
        return self.chunks * nearest_multiple(self.salient_ratio, K // self.chunks, CHANNEL_QUANTUM)

    def salient_weights(self, N: int, K: int) -> int:
        """4-bit weights of a linear layer `[N, K]`."""
        if self.mask == "columns":
            return N * self.salient_channels(K)
        return nearest_multiple(self.salient_ratio, N * K, CHANNEL_QUANTUM)

    def check_shape(self, N: int, K: int) -> None:
        """Raise `BadInput` for a shape that the format cannot hold."""
        if N < 1 or K < 1 or K % (CHANNEL_QUANTUM * self.chunks):
            raise BadInput(
                f"in_features must be a positive multiple of {CHANNEL_QUANTUM * self.chunks} "
                f"(8 channels in each of {self.chunks} chunks) and out_features positive; got [{N}, {K}]."
            )

    def tensor_specs(self, N: int, K: int) -> dict[str, TensorSpec]:
        """Suffix to shape and dtype of every tensor of a linear layer `[N, K]`, its bias aside."""
        self.check_shape(N, K)
        salient = self.salient_weights(N, K)
        binary_bytes = (N * K - salient) // 8
        salient_bytes = salient // 2
        by_row = self.mask == "columns"
        return {
            "qweight": ((N, binary_bytes // N) if by_row else (binary_bytes,), torch.uint8),
            "qweight_salient": ((N, salient_bytes // N) if by_row else (salient_bytes,), torch.uint8),
            "scales": ((N, 3), torch.float16),
            "channel_scales": ((K,), torch.float16),
            "salient_mask": ((K // 8,) if by_row else (N, K // 8), torch.uint8),
        }

    def of(self, name: str) -> "WeightFormat":
        """Of a quantized tensor's owner by its full name: this one for decoder linears, `TABLE_FORMAT` for the rest."""
        return self if name.startswith("model.layers.") else TABLE_FORMAT

    def to_config(self) -> dict[str, Any]:
        """The `quantization_config` of config.json; releases that know no `head_bits` but 16 read all without it."""
        config = {
            "quant_method": QUANT_METHOD,
            "format_version": FORMAT_VERSION,
            "mask": self.mask,
            "salient_ratio": self.salient_ratio,
            "chunks": self.chunks,
        }
        return config if self.head_bits == 16 else config | {"head_bits": self.head_bits}

    @property
    def table_parts(self) -> int:
        """4-bit parts of which every weight of a quantized table is the sum; 0 with 16-bit heads."""
        return 0 if self.head_bits == 16 else self.head_bits // SALIENT_BITS


TABLE_FORMAT: Final = WeightFormat("columns", salient_ratio=1, chunks=1)
"""Of a quantized embedding table or lm_head `[vocabulary, parts * hidden]`: a linear layer of 4-bit channels only."""


def format_from_config(config: dict[str, Any]) -> WeightFormat:
    """Read the `quantization_config` of config.json; `BadInput` for anything this version does not know."""
    if config.get("quant_method") != QUANT_METHOD:
        raise BadInput(f"quant_method must be {QUANT_METHOD!r}; got {config.get('quant_method')!r}.")
    version = config.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise BadInput(
            f"This release reads format_version {FORMAT_VERSION}; the checkpoint has {version!r}. "
            "Install the release of squeeze10-vllm that wrote it."
        )
    unknown = sorted(set(config) - set(CONFIG_KEYS))
    if unknown:
        raise BadInput(f"quantization_config has the unknown key {unknown[0]!r}; known: {', '.join(CONFIG_KEYS)}.")
    missing = [key for key in ("mask", "salient_ratio", "chunks") if key not in config]
    if missing:
        raise BadInput(f"quantization_config lacks {missing[0]!r}; quantize the model again.")
    return WeightFormat(**{key: config[key] for key in FORMAT_KEYS if key in config})


def nearest_multiple(ratio: float, total: int, quantum: int) -> int:
    """The multiple of `quantum` nearest to `ratio * total`, halves up; exact for decimal ratios."""
    return quantum * int(Fraction(str(ratio)) * total / quantum + Fraction(1, 2))
