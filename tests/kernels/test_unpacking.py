"""The assembly strings, run here instruction by instruction: no machine of CI can run them."""

import re

import pytest
import torch

from squeeze10_kernels import unpacking


def run_assembly(code: str, word: int, dtype: torch.dtype) -> list[int]:
    """Outputs of a straight line of `mov`, shifts, `lop3` and `sub` on one 32-bit input."""
    input_name = "$16" if "$16" in code else "$4"
    registers = {input_name: word}
    for instruction in re.findall(r"(?:mov|shl|shr|shf|lop3|sub)[^;]*;", code):
        name, target, *operands = re.split(r"[ ,;]+", instruction.strip(" ;"))
        source, *others = (registers[text] if text in registers else int(text, 0) for text in operands)
        if name == "mov.b32":
            result = source
        elif name == "shl.b32":
            result = source << others[0] & 0xFFFFFFFF
        elif name == "shr.b32":
            result = source >> others[0]
        elif name == "shf.r.wrap.b32":
            result = (source | source << 32) >> others[1] & 0xFFFFFFFF
        elif name == "lop3.b32":
            b, c, table = others
            bits = (table >> ((source >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1 for i in range(32))
            result = sum(bit << i for i, bit in enumerate(bits))
        else:
            assert name == ("sub.bf16x2" if dtype == torch.bfloat16 else "sub.f16x2")
            difference = halves([source], dtype) - halves(others, dtype)
            result = difference.view(torch.int32).item() & 0xFFFFFFFF
        registers[target] = result
    outputs = {name: value for name, value in registers.items() if name.startswith("$") and name != input_name}
    return [outputs[f"${i}"] for i in range(len(outputs))]


def halves(words: list[int], dtype: torch.dtype) -> torch.Tensor:
    """`[words, 2]`: low half, high half as numbers."""
    signed = torch.tensor(words, dtype=torch.int64).to(torch.int32)
    return signed.view(torch.int16).view(dtype).view(-1, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bits_come_as_signs_plus_an_offset(dtype: torch.dtype) -> None:
    code = (unpacking.BF16_BITS if dtype == torch.bfloat16 else unpacking.FP16_BITS).value
    word = 0xB3C5_1E7A
    offsets = torch.tensor([[2 ** (8 - i % 8) + 1] for i in range(16)])

    values = halves(run_assembly(code, word, dtype), dtype).float() - offsets

    expected = [[2 * (word >> i & 1) - 1, 2 * (word >> 16 + i & 1) - 1] for i in range(16)]
    assert values.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nibbles(dtype: torch.dtype) -> None:
    code = (unpacking.BF16_NIBBLES if dtype == torch.bfloat16 else unpacking.FP16_NIBBLES).value
    word = 0x1F2E_94B7
    rotated = (word << 3 | word >> 29) & 0xFFFFFFFF
    offset = unpacking.BF16_SALIENT_OFFSET if dtype == torch.bfloat16 else unpacking.FP16_SALIENT_OFFSET

    values = halves(run_assembly(code, rotated, dtype), dtype) - offset

    assert values.tolist() == [[(word >> 4 * i & 15) - 8, (word >> 16 + 4 * i & 15) - 8] for i in range(4)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("word", [0, 0xFFFF_FFFF, 0xB3C5_1E7A])
def test_bits_come_as_signs_where_the_offset_is_taken_off(word: int, dtype: torch.dtype) -> None:
    code = (unpacking.BF16_SIGNS if dtype == torch.bfloat16 else unpacking.FP16_SIGNS).value

    values = halves(run_assembly(code, word, dtype), dtype)

    assert values.tolist() == [[2 * (word >> i & 1) - 1, 2 * (word >> 16 + i & 1) - 1] for i in range(16)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nibbles_come_as_levels_where_the_offset_is_taken_off(dtype: torch.dtype) -> None:
    code = (unpacking.BF16_LEVELS if dtype == torch.bfloat16 else unpacking.FP16_LEVELS).value
    word = 0x1F2E_94B7
    rotated = (word << 3 | word >> 29) & 0xFFFFFFFF

    values = halves(run_assembly(code, rotated, dtype), dtype)

    assert values.tolist() == [[(word >> 4 * i & 15) - 8, (word >> 16 + 4 * i & 15) - 8] for i in range(4)]
