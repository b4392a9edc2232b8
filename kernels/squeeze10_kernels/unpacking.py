"""Weights of some units, built in registers from packed words: the device side of `to_kernel_layout`.

The words of a lane hold just the weights that the tensor core wants from that lane, so `join`, `permute` and `reshape`
only rename registers; with a warp for every index of the first dimension nothing passes through shared memory.

A `lop3` makes two weights: it puts their bits into the mantissa of a constant. So a binary weight comes as ±1 plus
an offset that depends on its channel alone, a salient one as its level plus a constant; both are exact, and the sum of
the activations times the offsets is taken off at the end. Where the multiplication leaves time for it, the offset is
taken off here, by a second instruction: `SIGNS` and `LEVELS`. The interpreter cannot run assembly and takes the
arithmetic branch, which is the definition.
"""

from typing import Final

import torch
import triton
import triton.language as tl

TRITON: Final = tuple(map(int, triton.__version__.split(".")[:2]))
ROW_MAJOR: tl.constexpr = tl.constexpr(TRITON >= (3, 7))
"""Triton spreads the warps of a load over its last dimensions first; 3.6 over its first one, then over the others."""
BF16_SALIENT_OFFSET: Final = 24
"""`salient_weights` in bf16 gives code + 16, that is (code - 8) + 24: an exponent over the code, no subtraction."""
FP16_SALIENT_OFFSET: Final = 136
"""The same in fp16: code + 128."""


def _pair(value: float, dtype: torch.dtype) -> str:
    """A value in 16 bits, twice, as assembly takes it."""
    return hex((int(torch.tensor(value, dtype=dtype).view(torch.int16)) & 0xFFFF) * 0x10001)


def _bits_asm(dtype: torch.dtype, centred: bool) -> str:
    """Sixteen pairs from a word: bit i of each half into the mantissa of c = 2^(8 - i % 8), where it adds 2.

    Args:
        centred: Take off c + 1, which leaves ±1. In bf16 257 is not a number; there bits 0 and 8 become the sign of 1.
    """
    # bit 0 and bit 8 to where they are worth 2 in 2^8
    position, kind = (0, "bf16x2") if dtype == torch.bfloat16 else (3, "f16x2")
    code = ["mov.b32 l, $16; shr.b32 h, $16, 8;" if position == 0 else "shl.b32 l, $16, 3; shr.b32 h, $16, 5;"]
    for i in range(16):
        word, mask, base = "l" if i < 8 else "h", hex((1 << position + i % 8) * 0x10001), 2.0 ** (8 - i % 8)
        if not centred:
            code.append(f"lop3.b32 ${i}, {word}, {mask}, {_pair(base, dtype)}, 0xEA;")
        elif dtype == torch.bfloat16 and i % 8 == 0:
            code.append(f"shl.b32 t, $16, {15 - i}; lop3.b32 ${i}, t, 0x80008000, {_pair(-1, dtype)}, 0x6A;")
        else:
            code.append(f"lop3.b32 t, {word}, {mask}, {_pair(base, dtype)}, 0xEA; mov.b32 u, {_pair(base + 1, dtype)};")
            code.append(f"sub.{kind} ${i}, t, u;")
    return "{ .reg .b32 l, h, t, u; " + " ".join(code) + " }"


def _nibbles_asm(dtype: torch.dtype, centred: bool) -> str:
    """Four pairs from a word that is rotated left by 3: nibble i of each half under an exponent.

    Args:
        centred: Take off the exponent and 8, which leaves code - 8.
    """
    base, kind = (16.0, "bf16x2") if dtype == torch.bfloat16 else (128.0, "f16x2")
    code = [f"mov.b32 u, {_pair(base + 8, dtype)};"]
    for i in range(4):
        to = "t" if centred else f"${i}"
        code.append(f"shf.r.wrap.b32 t, $4, $4, {4 * i}; lop3.b32 {to}, t, 0x00780078, {_pair(base, dtype)}, 0xEA;")
        if centred:
            code.append(f"sub.{kind} ${i}, t, u;")
    return "{ .reg .b32 t, u; " + " ".join(code) + " }"


@triton.constexpr_function
def salient_offset(dtype):
    """What `salient_weights` adds to code - 8."""
    return BF16_SALIENT_OFFSET if dtype == tl.bfloat16 else FP16_SALIENT_OFFSET


@triton.constexpr_function
def copies(dtype, count):
    return (dtype,) * count


BF16_BITS: tl.constexpr = tl.constexpr(_bits_asm(torch.bfloat16, centred=False))
FP16_BITS: tl.constexpr = tl.constexpr(_bits_asm(torch.float16, centred=False))
BF16_SIGNS: tl.constexpr = tl.constexpr(_bits_asm(torch.bfloat16, centred=True))
FP16_SIGNS: tl.constexpr = tl.constexpr(_bits_asm(torch.float16, centred=True))
BF16_NIBBLES: tl.constexpr = tl.constexpr(_nibbles_asm(torch.bfloat16, centred=False))
FP16_NIBBLES: tl.constexpr = tl.constexpr(_nibbles_asm(torch.float16, centred=False))
BF16_LEVELS: tl.constexpr = tl.constexpr(_nibbles_asm(torch.bfloat16, centred=True))
FP16_LEVELS: tl.constexpr = tl.constexpr(_nibbles_asm(torch.float16, centred=True))
SIXTEEN: tl.constexpr = tl.constexpr("=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,r")
FOUR: tl.constexpr = tl.constexpr("=r,=r,=r,=r,r")


@triton.jit
def load_by_warp(pointers, mask):
    """What lies at `[B, n, 256]` or `[B, n, n', 256]`, zero off the mask, each of B in a warp of its own."""
    mask = tl.broadcast_to(mask, pointers.shape)
    if ROW_MAJOR and len(pointers.shape) == 3:
        x = tl.load(tl.permute(pointers, (1, 0, 2)), mask=tl.permute(mask, (1, 0, 2)), other=0)
        x = tl.permute(x, (1, 0, 2))
    elif ROW_MAJOR:
        x = tl.load(tl.permute(pointers, (1, 2, 0, 3)), mask=tl.permute(mask, (1, 2, 0, 3)), other=0)
        x = tl.permute(x, (2, 0, 1, 3))
    else:
        x = tl.load(pointers, mask=mask, other=0)
    return x


@triton.jit
def load_words(words_ptr, unit, end, row_tile, N):
    """Words of units `[B]` for row tiles `[B, T]` of 16 rows: `[B, T, 8, 4, 4, 2]` int16.

    Units from `end` on are not read.
    """
    tiles = tl.cdiv(N, 16)
    unit, row_tile = unit[:, None, None], row_tile[:, :, None]
    at = words_ptr + (unit * tiles + row_tile) * 256 + tl.arange(0, 256)[None, None, :]
    words = load_by_warp(at, (row_tile < tiles) & (unit < end))
    return tl.reshape(words, (words.shape[0], words.shape[1], 8, 4, 4, 2))


@triton.jit
def binary_offset(k):
    """What `binary_weights` adds to ±1 at kernel channels k: by the bit of the channel in its word."""
    bit = k // 16 % 4 * 2 + k // 2 % 2
    return (256 >> bit) + 1


@triton.jit
def binary_weights(words, dtype: tl.constexpr, ASM: tl.constexpr):
    """`[B, T, 8, 4, 4, 2]` int16 to ±1 plus `binary_offset`, `[B, 16 T, 256]`."""
    B: tl.constexpr = words.shape[0]
    T: tl.constexpr = words.shape[1]
    if ASM:
        code: tl.constexpr = BF16_BITS if dtype == tl.bfloat16 else FP16_BITS
        w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15 = tl.inline_asm_elementwise(
            code, SIXTEEN, [words], dtype=copies(dtype, 16), is_pure=True, pack=2
        )
        low = tl.join(
            tl.join(tl.join(w0, w1), tl.join(w2, w3)),  # [..., half k, step low]
            tl.join(tl.join(w4, w5), tl.join(w6, w7)),
        )
        high = tl.join(
            tl.join(tl.join(w8, w9), tl.join(w10, w11)),
            tl.join(tl.join(w12, w13), tl.join(w14, w15)),
        )
        fields = tl.join(low, high)  # [B, T, row, lane, word, pair, half k, step low, step high, half row]
        weights = tl.permute(fields, (0, 1, 9, 2, 4, 8, 7, 3, 6, 5))
    else:
        bit = tl.arange(0, 16)
        bits = (words[:, :, :, :, :, :, None] >> bit.to(tl.int16)) & 1
        values = (2 * bits.to(tl.int32) + (256 >> bit % 8)).to(dtype)
        fields = tl.reshape(values, (B, T, 8, 4, 4, 2, 2, 2, 2, 2))
        weights = tl.permute(fields, (0, 1, 6, 2, 4, 7, 8, 3, 9, 5))
    return tl.reshape(weights, (B, 16 * T, 256))


@triton.jit
def salient_weights(words, dtype: tl.constexpr, ASM: tl.constexpr):
    """`[B, T, 8, 4, 4, 2]` int16 to code - 8 + the offset of the dtype, `[B, 16 T, 64]`."""
    B: tl.constexpr = words.shape[0]
    T: tl.constexpr = words.shape[1]
    if ASM:
        code: tl.constexpr = BF16_NIBBLES if dtype == tl.bfloat16 else FP16_NIBBLES
        w0, w1, w2, w3 = tl.inline_asm_elementwise(code, FOUR, [words], dtype=copies(dtype, 4), is_pure=True, pack=2)
        fields = tl.join(tl.join(w0, w1), tl.join(w2, w3))  # [B, T, row, lane, step, pair, half row, half k]
        weights = tl.permute(fields, (0, 1, 6, 2, 4, 3, 7, 5))
    else:
        base: tl.constexpr = 16 if dtype == tl.bfloat16 else 128
        low, high = tl.split(words.to(tl.uint16, bitcast=True).to(tl.uint32))
        word = high << 16 | low
        word = (word >> 3 | word << 29)[:, :, :, :, :, None]  # [B, T, row, lane, step, 1]
        half = (word >> (16 * tl.arange(0, 2).to(tl.uint32)))[:, :, :, :, :, :, None]  # [..., pair, 1]
        nibble = half >> (4 * tl.arange(0, 4).to(tl.uint32)) & 15
        fields = tl.reshape((nibble.to(tl.int32) + base).to(dtype), (B, T, 8, 4, 4, 2, 2, 2))
        weights = tl.permute(fields, (0, 1, 7, 2, 4, 3, 6, 5))
    return tl.reshape(weights, (B, 16 * T, 64))
