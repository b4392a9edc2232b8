"""The assembly strings, run here instruction by instruction: no machine of CI can run them."""

import re

import pytest
import torch

from squeeze10_kernels import unpacking


def run_assembly(code: str, word: int) -> list[int]:
    """Outputs of a straight line of `shl`, `shf.r.wrap` and `lop3` on one 32-bit input."""
    outputs: dict[int, int] = {}
    shifted = 0
    for instruction in re.findall(r"(?:shl|shf|lop3)[^;]*;", code):
        name, *operands = re.split(r"[ ,;]+", instruction.strip(" ;"))
        if name == "shl.b32":
            shifted = word << int(operands[2]) & 0xFFFFFFFF
        elif name == "shf.r.wrap.b32":
            shifted = (word | word << 32) >> int(operands[3]) & 0xFFFFFFFF
        else:
            table = int(operands[4], 16)
            b, c = int(operands[2], 16), int(operands[3], 16)
            bits = (table >> ((shifted >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1 for i in range(32))
            outputs[int(operands[0][1:])] = sum(bit << i for i, bit in enumerate(bits))
    return [outputs[i] for i in range(len(outputs))]


def halves(words: list[int], dtype: torch.dtype) -> torch.Tensor:
    """`[words, 2]`: low half, high half as numbers."""
    signed = torch.tensor(words, dtype=torch.int64).to(torch.int32)
    return signed.view(torch.int16).view(dtype).view(-1, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_signs(dtype: torch.dtype) -> None:
    code = (unpacking._BF16_SIGNS if dtype == torch.bfloat16 else unpacking._FP16_SIGNS).value
    word = 0xB3C5_1E7A

    values = halves(run_assembly(code, word), dtype)

    expected = [[2 * (word >> i & 1) - 1, 2 * (word >> 16 + i & 1) - 1] for i in range(16)]
    assert values.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nibbles(dtype: torch.dtype) -> None:
    code = (unpacking._BF16_NIBBLES if dtype == torch.bfloat16 else unpacking._FP16_NIBBLES).value
    word = 0x1F2E_94B7
    rotated = (word << 3 | word >> 29) & 0xFFFFFFFF
    offset = unpacking.BF16_SALIENT_OFFSET if dtype == torch.bfloat16 else unpacking.FP16_SALIENT_OFFSET

    values = halves(run_assembly(code, rotated), dtype) - offset

    assert values.tolist() == [[(word >> 4 * i & 15) - 8, (word >> 16 + 4 * i & 15) - 8] for i in range(4)]
