"""The assembly strings, run here instruction by instruction: no machine of CI can run them."""

import re

import pytest
import torch

from squeeze10_kernels import unpacking


def run_assembly(code: str, word: int) -> list[int]:
    """Outputs of a straight line of `mov`, shifts and `lop3` on one 32-bit input."""
    outputs: dict[int, int] = {}
    registers = {"$16": word, "$4": word}
    for instruction in re.findall(r"(?:mov|shl|shr|shf|lop3)[^;]*;", code):
        name, *operands = re.split(r"[ ,;]+", instruction.strip(" ;"))
        target, source = operands[0], registers[operands[1]]
        if name == "mov.b32":
            registers[target] = source
        elif name == "shl.b32":
            registers[target] = source << int(operands[2]) & 0xFFFFFFFF
        elif name == "shr.b32":
            registers[target] = source >> int(operands[2])
        elif name == "shf.r.wrap.b32":
            registers[target] = (source | source << 32) >> int(operands[3]) & 0xFFFFFFFF
        else:
            table, b, c = int(operands[4], 16), int(operands[2], 16), int(operands[3], 16)
            bits = (table >> ((source >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1 for i in range(32))
            outputs[int(target[1:])] = sum(bit << i for i, bit in enumerate(bits))
    return [outputs[i] for i in range(len(outputs))]


def halves(words: list[int], dtype: torch.dtype) -> torch.Tensor:
    """`[words, 2]`: low half, high half as numbers."""
    signed = torch.tensor(words, dtype=torch.int64).to(torch.int32)
    return signed.view(torch.int16).view(dtype).view(-1, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bits_come_as_signs_plus_an_offset(dtype: torch.dtype) -> None:
    code = (unpacking._BF16_BITS if dtype == torch.bfloat16 else unpacking._FP16_BITS).value
    word = 0xB3C5_1E7A
    offsets = torch.tensor([[2 ** (8 - i % 8) + 1] for i in range(16)])

    values = halves(run_assembly(code, word), dtype).float() - offsets

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
