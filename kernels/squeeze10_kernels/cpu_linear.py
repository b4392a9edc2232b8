"""Mask `columns` on CPUs: both parts as torch's packed int4 weights, at 4 bits per weight in memory.

Few tokens are bound by reading the weights, which torch's int4 matmul does; many tokens are bound by arithmetic, so
the packed codes are decoded and multiplied densely. The integer levels (±1 and code - 8; 0 for padding) are exact;
the row scales act in fp32 on the products, since bf16 row scales would shift each row by up to 2^-9. bf16 only:
torch's int4 matmul has no vectorised fp16 or fp32 kernel, so those dtypes are served by `dense_linear`.
"""

from functools import cache
from typing import Final

import torch
import torch.nn.functional as F

from squeeze10_kernels.dense_linear import combine_parts, matmul_dtype, matmul_fp32
from squeeze10_kernels.format import SALIENT_OFFSET
from squeeze10_kernels.packing import unpack_bits, unpack_nibbles
from squeeze10_kernels.reference import scale_activations

GROUP_SIZES: Final = (256, 128, 64, 32)
"""What torch's int4 matmul takes; larger ones read fewer group scales."""
MAX_PADDING: Final = 0.05
"""Padded channels of one part, as a share of K, that a larger group may cost."""
ROW_QUANTUM: Final = 64
"""Rows are padded to the widest of torch's row blocks, so that every block has the same layout."""
MAX_INT4_TOKENS: Final = 128
"""Above, decoding pays: measured on AVX2 at K = 576 and 4096 (LOG.md)."""


def group_size(channels: int, K: int) -> int:
    """The largest group that pads a part of `channels` channels by less than 5 % of K, or the smallest group."""
    for size in GROUP_SIZES:
        if -channels % size < MAX_PADDING * K:
            return size
    return GROUP_SIZES[-1]


def repack_columns(
    qweight: torch.Tensor, qweight_salient: torch.Tensor, channels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both parts of a layer `[N, K]` as packed int4, padded to groups.

    Args:
        qweight: 1-bit codes, `[N, B // 8]` uint8.
        qweight_salient: 4-bit codes, `[N, S // 2]` uint8; B + S = K.
        channels: `[K]` int64, see `dense_linear.channel_order`.

    Returns:
        The packed parts, `[N', B' // 2]` and `[N', S' // 2]` uint8, and `[B' + S']` int64, the channel that each
        packed channel reads; padding reads channel 0 with weight 0.
    """
    K, B = channels.shape[0], 8 * qweight.shape[1]
    parts, order = [], []
    for levels, part in (
        (2 * unpack_bits(qweight) + (SALIENT_OFFSET - 1), channels[:B]),
        (unpack_nibbles(qweight_salient), channels[B:]),
    ):
        padding = -part.shape[0] % group_size(part.shape[0], K)
        parts.append(pack_int4(F.pad(levels, (0, padding), value=SALIENT_OFFSET)))
        order.append(F.pad(part, (0, padding)))
    return parts[0], parts[1], torch.cat(order)


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """Codes `[N, n]` uint8 in 0..15 to torch's CPU layout `[N', n // 2]` uint8; n a multiple of 32."""
    codes = F.pad(codes, (0, 0, 0, -codes.shape[0] % ROW_QUANTUM), value=SALIENT_OFFSET)
    if codes.numel() == 0:
        return codes.new_empty(codes.shape[0], 0)
    packed: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    return packed


def int4_columns_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    packed_salient: torch.Tensor,
    scales: torch.Tensor,
    channel_scales: torch.Tensor,
    order: torch.Tensor,
    *,
    salient_channels: int,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """`mixed_linear_reference` of a layer with mask `columns`, from `repack_columns`.

    Args:
        x: Activations, `[M, K]` bf16.
        packed: 1-bit part, `[N', B' // 2]` uint8.
        packed_salient: 4-bit part, `[N', S' // 2]` uint8.
        scales: `[N, 3]` s1, s4, z4.
        channel_scales: `[K]` c.
        order: `[B' + S']` int64.
        salient_channels: S, the 4-bit channels without padding.
        bias: `[N]` or None.

    Returns:
        `[M, N]` bf16.
    """
    N, K = scales.shape[0], x.shape[1]
    binary_width = 2 * packed.shape[1]
    scaled = scale_activations(x, channel_scales)
    binary = scaled.index_select(1, order[:binary_width])  # [M, B']
    salient = scaled.index_select(1, order[binary_width:])  # [M, S']
    return combine_parts(
        packed_matmul(binary, packed, group_size(K - salient_channels, K))[:, :N],
        packed_matmul(salient, packed_salient, group_size(salient_channels, K))[:, :N],
        salient[:, :salient_channels].sum(1, dtype=torch.float32),
        scales,
        bias,
        x.dtype,
    )


def packed_matmul(x: torch.Tensor, packed: torch.Tensor, group: int) -> torch.Tensor:
    """`x (codes - 8)ᵀ`: `[M, n]` bf16 and `[N', n // 2]` uint8 to `[M, N']` bf16 or fp32."""
    rows = packed.shape[0]
    if x.numel() == 0:
        return x.new_zeros(x.shape[0], rows)
    block = block_rows()
    if x.shape[0] <= MAX_INT4_TOKENS or block is None:
        y: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x, packed, group, unit_scales(x.shape[1] // group, rows)
        )
        return y
    dtype = matmul_dtype(x)
    return matmul_fp32(x.to(dtype), unpack_int4(packed, block, dtype).t())


@cache
def unit_scales(groups: int, rows: int) -> torch.Tensor:
    """Scale 1 and offset 0 of every group: `[groups, rows, 2]` bf16. Shared by all layers of one shape."""
    return torch.tensor([1.0, 0.0], dtype=torch.bfloat16).expand(groups, rows, 2).contiguous()


def unpack_int4(packed: torch.Tensor, block: int, dtype: torch.dtype) -> torch.Tensor:
    """`codes - 8` of a packed part, `[n, N']` in `dtype`, from `[N', n // 2]` uint8.

    Each block of rows lies channel by channel; byte `b` of a channel holds row `b` in its low nibble and row
    `b + block / 2` in its high one.
    """
    blocks, channels = packed.shape[0] // block, 2 * packed.shape[1]
    source = packed.view(blocks, channels, block // 2).transpose(0, 1)
    levels = torch.empty(channels, blocks, 2, block // 2, dtype=dtype, device=packed.device)
    levels[:, :, 0] = source & 15
    levels[:, :, 1] = source >> 4
    return levels.view(channels, -1).sub_(SALIENT_OFFSET)


@cache
def block_rows() -> int | None:
    """Rows per block of torch's int4 layout on this CPU, found by packing a sample; None if it is another layout."""
    codes = torch.arange(2 * ROW_QUANTUM * 32, dtype=torch.int32).view(2 * ROW_QUANTUM, 32) * 7 // 3 % 16
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    for block in (64, 32):
        if torch.equal(unpack_int4(packed, block, torch.float32).t() + SALIENT_OFFSET, codes.float()):
            return block
    return None
