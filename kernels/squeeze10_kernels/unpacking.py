"""Weights of one unit, built in registers from packed words: the device side of `to_kernel_layout`.

The words of a lane hold just the weights that the tensor core wants from that lane, so `join`, `permute` and `reshape`
only rename registers. Inline assembly makes a pair of weights of one shift and one `lop3`; the interpreter cannot run
it and takes the arithmetic branch, which is the definition.
"""

from typing import Final

import triton
import triton.language as tl

BF16_SALIENT_OFFSET: Final = 24
"""`salient_weights` in bf16 gives code + 16, that is (code - 8) + 24: an exponent over the code, no subtraction."""
FP16_SALIENT_OFFSET: Final = 136
"""The same in fp16: code + 128."""


def _signs_asm(minus_one: int) -> str:
    """Sixteen pairs of ±1 from a word: bit i of each half to the sign, flipping that of -1."""
    pairs = (f"shl.b32 t, $16, {15 - i}; lop3.b32 ${i}, t, 0x80008000, {minus_one:#x}, 0x6A;" for i in range(16))
    return "{ .reg .b32 t; " + " ".join(pairs) + " }"


def _nibbles_asm(exponent: int) -> str:
    """Four pairs from a word that is rotated left by 3: nibble i of each half under an exponent."""
    pairs = (f"shf.r.wrap.b32 t, $4, $4, {4 * i}; lop3.b32 ${i}, t, 0x00780078, {exponent:#x}, 0xEA;" for i in range(4))
    return "{ .reg .b32 t; " + " ".join(pairs) + " }"


@triton.constexpr_function
def salient_offset(dtype):
    """What `salient_weights` adds to code - 8."""
    return BF16_SALIENT_OFFSET if dtype == tl.bfloat16 else FP16_SALIENT_OFFSET


@triton.constexpr_function
def _copies(dtype, count):
    return (dtype,) * count


_BF16_SIGNS: tl.constexpr = tl.constexpr(_signs_asm(0xBF80BF80))
_FP16_SIGNS: tl.constexpr = tl.constexpr(_signs_asm(0xBC00BC00))
_BF16_NIBBLES: tl.constexpr = tl.constexpr(_nibbles_asm(0x41804180))
_FP16_NIBBLES: tl.constexpr = tl.constexpr(_nibbles_asm(0x58005800))
_SIXTEEN: tl.constexpr = tl.constexpr("=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,r")
_FOUR: tl.constexpr = tl.constexpr("=r,=r,=r,=r,r")


@triton.jit
def load_words(words_ptr, unit, first, tile, N, BN: tl.constexpr, W: tl.constexpr):
    """Words `first` to `first + W` of all lanes of `BN` rows of a unit, `[BN / 16, 8, 4, W, 2]` int16."""
    tiles = tl.cdiv(N, 16)
    row_tile = tile * (BN // 16) + tl.arange(0, BN // 16)[:, None, None]
    lane = tl.arange(0, 32)[None, :, None]
    half = tl.arange(0, 2 * W)[None, None, :]
    at = words_ptr + (unit * tiles) * 256 + first * 2 + (row_tile * 256 + lane * 8 + half)
    # one 16-byte load for a lane: 4-dimensional addresses would cut it into single words
    words = tl.load(at, mask=row_tile < tiles, other=0)
    return tl.reshape(words, (BN // 16, 8, 4, W, 2))


@triton.jit
def binary_weights(words, dtype: tl.constexpr, ASM: tl.constexpr):
    """`[T, 8, 4, W, 2]` int16 to ±1, `[16 T, 64 W]`."""
    T: tl.constexpr = words.shape[0]
    W: tl.constexpr = words.shape[3]
    if ASM:
        code: tl.constexpr = _BF16_SIGNS if dtype == tl.bfloat16 else _FP16_SIGNS
        w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15 = tl.inline_asm_elementwise(
            code, _SIXTEEN, [words], dtype=_copies(dtype, 16), is_pure=True, pack=2
        )
        low = tl.join(
            tl.join(tl.join(w0, w1), tl.join(w2, w3)),  # [..., half row, half k]
            tl.join(tl.join(w4, w5), tl.join(w6, w7)),
        )
        high = tl.join(
            tl.join(tl.join(w8, w9), tl.join(w10, w11)),
            tl.join(tl.join(w12, w13), tl.join(w14, w15)),
        )
        fields = tl.join(low, high)  # [T, row, lane, word, pair, half row, half k, step low, step high]
        weights = tl.permute(fields, (0, 5, 1, 3, 8, 7, 6, 2, 4))
    else:
        bits = (words[:, :, :, :, :, None] >> tl.arange(0, 16).to(tl.int16)[None, None, None, None, None, :]) & 1
        fields = tl.reshape((2 * bits - 1).to(dtype), (T, 8, 4, W, 2, 4, 2, 2))
        weights = tl.permute(fields, (0, 7, 1, 3, 5, 6, 2, 4))
    return tl.reshape(weights, (16 * T, 64 * W))


@triton.jit
def salient_weights(words, dtype: tl.constexpr, ASM: tl.constexpr):
    """`[T, 8, 4, 4, 2]` int16 to code - 8 + the offset of the dtype, `[16 T, 64]`."""
    T: tl.constexpr = words.shape[0]
    if ASM:
        code: tl.constexpr = _BF16_NIBBLES if dtype == tl.bfloat16 else _FP16_NIBBLES
        w0, w1, w2, w3 = tl.inline_asm_elementwise(code, _FOUR, [words], dtype=_copies(dtype, 4), is_pure=True, pack=2)
        fields = tl.join(tl.join(w0, w1), tl.join(w2, w3))  # [T, row, lane, step, pair, half row, half k]
        weights = tl.permute(fields, (0, 5, 1, 3, 6, 2, 4))
    else:
        base: tl.constexpr = 16 if dtype == tl.bfloat16 else 128
        low, high = tl.split(words.to(tl.uint16, bitcast=True).to(tl.uint32))
        word = (high << 16 | low)[:, :, :, :, None]
        word = word >> 3 | word << 29  # [T, row, lane, step, 1]
        half = tl.arange(0, 2).to(tl.uint32)[None, None, None, None, :]
        half = (word >> (16 * half))[:, :, :, :, :, None]  # [T, row, lane, step, pair, 1]
        nibble = half >> (4 * tl.arange(0, 4).to(tl.uint32))[None, None, None, None, None, :] & 15
        fields = tl.reshape((nibble.to(tl.int32) + base).to(dtype), (T, 8, 4, 4, 2, 2, 2))
        weights = tl.permute(fields, (0, 6, 1, 3, 5, 2, 4))
    return tl.reshape(weights, (16 * T, 64))
