"""What a layer means: the reference against a second reader (from FORMAT.md alone) and against float64."""

import hashlib
import json
import math
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from assertions import assert_close

from squeeze10_kernels import (
    QuantizedLinear,
    dequantize,
    mixed_linear_reference,
    open_checkpoint,
)
from squeeze10_kernels.reference import scale_activations

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden_v1"
WEIGHTS_SHA256 = {
    "golden_v1_columns": "ef36da1ccf2da0ba98c8a6f8af8b90b9976257226c81d7d7770fcceca5cd1da6",
    "golden_v1_elements": "019ad2431ae9d876519f70dd0e5382598368c33164ab1a5653321de51600813e",
}
"""SHA-256 of all dequantized weights: linears by name, row-major, little-endian fp32."""

f32 = np.float32


class SecondReader:
    """One checkpoint of a single safetensors file, decoded by scalar loops over its bytes."""

    def __init__(self, directory: Path) -> None:
        content = (directory / "model.safetensors").read_bytes()
        (header_size,) = struct.unpack("<Q", content[:8])
        self.header: dict[str, Any] = json.loads(content[8 : 8 + header_size])
        self.data = content[8 + header_size :]
        config = json.loads((directory / "config.json").read_text())
        self.quantization = config["quantization_config"]

    def linears(self) -> list[str]:
        return sorted(name.removesuffix(".qweight") for name in self.header if name.endswith(".qweight"))

    def raw(self, name: str) -> bytes:
        begin, end = self.header[name]["data_offsets"]
        return self.data[begin:end]

    def halves(self, name: str) -> list[np.float32]:
        raw = self.raw(name)
        return [f32(value) for value in struct.unpack(f"<{len(raw) // 2}e", raw)]

    def salient_count(self, N: int, K: int) -> int:
        ratio, chunks = Fraction(str(self.quantization["salient_ratio"])), self.quantization["chunks"]
        if self.quantization["mask"] == "elements":
            return 8 * math.floor(ratio * N * K / 8 + Fraction(1, 2))
        width, quantum = K // chunks, 16 if chunks == 1 else 8
        nearest = quantum * math.floor(ratio * width / quantum + Fraction(1, 2))
        return int(N * chunks * min(nearest, width))

    def weight(self, linear: str) -> np.ndarray:
        """`[N, K]` fp32."""
        scales, c = self.halves(f"{linear}.scales"), self.halves(f"{linear}.channel_scales")
        mask, by_row = self.raw(f"{linear}.salient_mask"), self.quantization["mask"] == "elements"
        binary, salient = self.raw(f"{linear}.qweight"), self.raw(f"{linear}.qweight_salient")
        N, K = len(scales) // 3, len(c)
        weight = np.empty((N, K), dtype=f32)
        binary_at = salient_at = 0
        for n in range(N):
            s1, s4, z4 = scales[3 * n : 3 * n + 3]
            for k in range(K):
                mask_at = n * K + k if by_row else k
                if mask[mask_at // 8] >> mask_at % 8 & 1:
                    code = salient[salient_at // 2] >> 4 * (salient_at % 2) & 15
                    salient_at += 1
                    row_weight = f32(f32(s4 * f32(code - 8)) + z4)
                else:
                    bit = binary[binary_at // 8] >> binary_at % 8 & 1
                    binary_at += 1
                    row_weight = f32(s1 * f32(2 * bit - 1))
                weight[n, k] = f32(row_weight * c[k])
        assert salient_at == self.salient_count(N, K)
        assert (binary_at, salient_at) == (8 * len(binary), 2 * len(salient))
        return weight


@pytest.mark.parametrize("name", WEIGHTS_SHA256)
def test_reference_equals_the_second_reader_bit_for_bit(name: str) -> None:
    checkpoint, second = open_checkpoint(GOLDEN / name), SecondReader(GOLDEN / name)

    assert sorted(checkpoint.linears) == second.linears()
    for linear in second.linears():
        expected = torch.from_numpy(second.weight(linear))
        actual = dequantize(checkpoint.layer(linear))
        assert torch.equal(actual.view(torch.int32), expected.view(torch.int32)), linear


@pytest.mark.parametrize("name", WEIGHTS_SHA256)
def test_every_later_release_reads_version_1(name: str) -> None:
    """These sums never change: they are the promise that a checkpoint stays readable."""
    checkpoint = open_checkpoint(GOLDEN / name)

    digest = hashlib.sha256()
    for linear in sorted(checkpoint.linears):
        digest.update(dequantize(checkpoint.layer(linear)).numpy().astype("<f4").tobytes())

    assert digest.hexdigest() == WEIGHTS_SHA256[name]


def random_layer(N: int, K: int) -> QuantizedLinear:
    salient = torch.rand(K) < 0.3
    codes = torch.where(salient, torch.randint(0, 16, (N, K)), torch.randint(0, 2, (N, K))).to(torch.uint8)
    scales = (torch.randn(N, 3) * 0.05).half()
    return QuantizedLinear(codes, salient, scales, (torch.randn(K) * 0.3).exp().half())


@pytest.mark.parametrize(
    ("dtype", "rms"),
    [
        pytest.param(torch.float32, 1e-6, id="fp32"),
        pytest.param(torch.bfloat16, 2e-3, id="bf16"),
        pytest.param(torch.float16, 3e-4, id="fp16"),
    ],
)
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
def test_linear_reference_against_float64(dtype: torch.dtype, rms: float, with_bias: bool) -> None:
    layer, x = random_layer(N=33, K=200), torch.randn(2, 5, 200).to(dtype)
    bias = torch.randn(33).to(dtype) if with_bias else None
    s1, s4, z4 = layer.scales.double().unbind(1)
    codes = layer.codes.double()
    rows = torch.where(layer.salient, s4[:, None] * (codes - 8) + z4[:, None], s1[:, None] * (2 * codes - 1))
    activations = (x.float() * layer.channel_scales.float()).to(dtype).double()
    expected = torch.einsum("abk,nk->abn", activations, rows) + (0 if bias is None else bias.double())

    actual = mixed_linear_reference(x, layer, bias)

    assert actual.dtype == dtype
    assert_close(actual, expected, rms=rms)


def test_linear_reference_agrees_with_dequantized_weight() -> None:
    """Scaling activations and scaling weights are one law: in fp32 they differ by rounding only."""
    layer, x = random_layer(N=16, K=128), torch.randn(4, 128)

    assert_close(mixed_linear_reference(x, layer), x @ dequantize(layer).T, rms=1e-6)


def test_scaled_activations_are_rounded_once_to_their_own_dtype() -> None:
    """1.00390625 is halfway between two bf16 numbers and goes to the even one."""
    x = torch.tensor([[1.0, 1.0, 3.0]], dtype=torch.bfloat16)
    channel_scales = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 0.5], dtype=torch.float16)

    scaled = scale_activations(x, channel_scales)

    assert scaled.dtype == torch.bfloat16
    assert scaled.tolist() == [[1.0, 1 + 2**-6, 1.5]]


def test_largest_activations_stay_finite_in_fp16() -> None:
    x = torch.full((1, 8), 16_000.0, dtype=torch.float16)

    assert scale_activations(x, torch.full((8,), 4.0, dtype=torch.float16)).isfinite().all()
