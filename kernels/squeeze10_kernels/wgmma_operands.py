"""Weights as the left operand of `wgmma`, in registers: the Gluon twin of `unpacking.py`, without offsets.

The words of a lane hold just the weights that `wgmma` wants from that lane, so `join`, `permute` and `reshape` only
rename registers, which `assert_trivial` holds Triton to.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from squeeze10_kernels.unpacking import (
    BF16_LEVELS,
    BF16_SIGNS,
    FOUR,
    FP16_LEVELS,
    FP16_SIGNS,
    SIXTEEN,
    copies,
)


@gluon.jit
def signs(word, T: gl.constexpr, dtype: gl.constexpr, left: gl.constexpr):
    """A word of every lane, `[T, 8, 4, 2]` int16, to ±1 as left operand `[16 T, 64]`."""
    code: gl.constexpr = BF16_SIGNS if dtype == gl.bfloat16 else FP16_SIGNS
    w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15 = gl.inline_asm_elementwise(
        code, SIXTEEN, [word], dtype=copies(dtype, 16), is_pure=True, pack=2
    )
    low = gl.join(gl.join(gl.join(w0, w1), gl.join(w2, w3)), gl.join(gl.join(w4, w5), gl.join(w6, w7)))
    high = gl.join(gl.join(gl.join(w8, w9), gl.join(w10, w11)), gl.join(gl.join(w12, w13), gl.join(w14, w15)))
    fields = gl.join(low, high)  # [T, row, lane, pair, half k, step low, step high, half row]
    weights = gl.reshape(gl.permute(fields, (0, 7, 1, 6, 5, 4, 2, 3)), (16 * T, 64))
    return gl.convert_layout(weights, left, assert_trivial=True)


@gluon.jit
def levels(words, T: gl.constexpr, dtype: gl.constexpr, left: gl.constexpr):
    """A unit, `[T, 128]` int32, to code - 8 as left operand `[16 T, 64]`."""
    code: gl.constexpr = BF16_LEVELS if dtype == gl.bfloat16 else FP16_LEVELS
    fields = gl.reshape(_halves(words), (T, 8, 4, 4, 2))
    w0, w1, w2, w3 = gl.inline_asm_elementwise(code, FOUR, [fields], dtype=copies(dtype, 4), is_pure=True, pack=2)
    fields = gl.join(gl.join(w0, w1), gl.join(w2, w3))  # [T, row, lane, step, pair, half row, half k]
    weights = gl.reshape(gl.permute(fields, (0, 5, 1, 3, 6, 2, 4)), (16 * T, 64))
    return gl.convert_layout(weights, left, assert_trivial=True)


@gluon.jit
def four_words(words, T: gl.constexpr):
    """The four words of every lane in a unit, `[T, 256]`, as `[T, 8, 4, 2]` each."""
    even, odd = gl.split(gl.reshape(words, (T, 8, 4, 2, 2)))
    w0, w2 = gl.split(even)
    w1, w3 = gl.split(odd)
    return _halves(w0), _halves(w1), _halves(w2), _halves(w3)


@gluon.jit
def _halves(words):
    """Words as pairs of half-words, `[..., 2]` int16."""
    return gl.join(words.to(gl.int16), (words >> 16).to(gl.int16))


@gluon.jit
def load_unit(words_ptr, unit, wanted, tile_n, N, T: gl.constexpr):
    """Words `[T, 128]` of T row tiles, 16 bytes a lane."""
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [1, 32], [gl.num_warps(), 1], [1, 0])
    row_tile = tile_n * T + gl.arange(0, T, layout=gl.SliceLayout(1, layout))[:, None]
    at = gl.arange(0, 128, layout=gl.SliceLayout(0, layout))[None, :]
    at = words_ptr + (unit * gl.cdiv(N, 16) + row_tile) * 128 + at
    return gl.load(at, mask=(row_tile * 16 < N) & wanted, other=0)
