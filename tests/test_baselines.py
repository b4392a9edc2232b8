"""Baselines are compared with ours by what their files hold: bytes counted, weights decoded from those, GGUF's rows."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from assertions import assert_close
from benchmarks import baselines, gguf_baselines
from tiny_model import write_tiny_model
from transformers import AutoModelForCausalLM

from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.loading import load_model

BENCHMARKS = Path(__file__).parents[1] / "deploy" / "benchmarks"
N, K = 16, 128
CPU = torch.device("cpu")


def read_codes(packed: torch.Tensor, bits: int, count: int) -> np.ndarray:
    """Codes by numpy's own unpacking."""
    flat = np.unpackbits(packed.numpy(), bitorder="little")[: count * bits].reshape(count, bits)
    return (flat * (1 << np.arange(bits))).sum(1)


def correlated_hessian() -> torch.Tensor:
    x = torch.randn(512, K) * torch.linspace(0.5, 2, K) + torch.randn(512, 1)
    return x.T @ x


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_uniform_bytes_are_all_it_needs(bits: int) -> None:
    """A bit too few in the count would flatter a baseline, a bit too many us."""
    weight = torch.randn(N, K)

    stored = baselines.nearest(weight, bits).stored()

    groups = K // baselines.GROUP_SIZE
    scales = stored.tensors["scales"].numpy().astype(np.float32).repeat(baselines.GROUP_SIZE, 1)
    zeros = read_codes(stored.tensors["zeros"], bits, N * groups).reshape(N, groups).repeat(baselines.GROUP_SIZE, 1)
    decoded = (read_codes(stored.tensors["codes"], bits, N * K).reshape(N, K) - zeros) * scales
    size = sum(tensor.nbytes for tensor in stored.tensors.values())
    assert size == N * K * bits // 8 + N * groups * bits // 8 + N * groups * 2
    assert np.array_equal(decoded.astype(np.float32), stored.weight.numpy())
    # half a step for rounding, half a step for the zero that is an integer
    assert (np.abs(decoded - weight.numpy()) <= 1.01 * scales).all()
    assert np.median(np.abs(decoded - weight.numpy()) / scales) < 0.3


def test_library_grid_is_kept() -> None:
    """llmcompressor's zero points are signed, ours are not."""
    linear = torch.nn.Linear(K, N)
    scale, zero = 0.01 + torch.rand(N, K // baselines.GROUP_SIZE).half().float(), torch.randint(-4, 4, (N, 2))
    codes = torch.randint(-4, 4, (N, K))
    weight = (codes - zero.repeat_interleave(baselines.GROUP_SIZE, 1)) * scale.repeat_interleave(64, 1)
    linear.weight = torch.nn.Parameter(weight)
    linear.weight_scale = torch.nn.Parameter(scale)
    linear.weight_zero_point = torch.nn.Parameter(zero.to(torch.int8), requires_grad=False)

    kept = baselines.from_grid(linear, 3)

    assert torch.equal(kept.codes.int() - 4, codes)
    assert_close(kept.stored().weight, weight, rms=1e-3)


def test_partly_binary_follows_its_rules() -> None:
    """Without correlations nothing is compensated: mask, mean, scale and grid of PB-LLM in plain loops."""
    weight = torch.randn(N, K) + 0.3

    stored = baselines.round_partly_binary(0, {"q": weight}, torch.eye(K))["q"]

    count = round(0.2 * N * K / 8) * 8
    threshold = weight.abs().flatten().sort().values[-count]
    expected = torch.empty_like(weight)
    for row, out in zip(weight, expected, strict=True):
        binary = torch.where(row.abs() < threshold, row, torch.zeros(K))
        mean = binary.sum() / K
        scale = float(((binary - mean).abs().sum() / K).half())
        mean = float(mean.half())
        low, high = min(float(row.min()), 0.0), max(float(row.max()), 0.0)
        step = float(torch.tensor((high - low) / 15).half())
        zero = round(-low / step)
        for j in range(K):
            many_bit = (min(max(round(float(row[j]) / step) + zero, 0), 15) - zero) * step
            out[j] = many_bit if row[j].abs() >= threshold else mean + (scale if row[j] >= mean else -scale)
    size = sum(tensor.nbytes for tensor in stored.tensors.values())
    assert size == (N * K - count) // 8 + count // 2 + N * K // 8 + 3 * 2 * N + N // 2
    assert_close(stored.weight, expected, rms=1e-6)


def test_partly_binary_bytes_are_all_it_needs() -> None:
    """Also where errors are compensated, which must help."""
    weight, hessian = torch.randn(N, K), correlated_hessian()

    stored = baselines.round_partly_binary(0, {"q": weight}, hessian)["q"]

    tensors = stored.tensors
    salient = read_codes(tensors["salient_mask"], 1, N * K).reshape(N, K).astype(bool)
    mean, scale, step = tensors["scales"].numpy().astype(np.float32).T
    zeros = read_codes(tensors["zeros"], 4, N)
    row = np.arange(N)[:, None].repeat(K, 1)
    many_bit, binary = row[salient], row[~salient]
    level = read_codes(tensors["qweight_salient"], 4, len(many_bit)) - zeros[many_bit]
    sign = 2 * read_codes(tensors["qweight"], 1, len(binary)) - 1
    decoded = np.empty((N, K), dtype=np.float32)
    decoded[salient] = level * step[many_bit]
    decoded[~salient] = mean[binary] + sign * scale[binary]
    plain = baselines.round_partly_binary(0, {"q": weight}, torch.eye(K))["q"].weight
    error, plain_error = (float(((w - weight) @ hessian * (w - weight)).sum()) for w in (stored.weight, plain))
    assert np.allclose(decoded, stored.weight.numpy(), rtol=0, atol=1e-6)
    assert error < 0.8 * plain_error


def test_channels_are_those_of_the_largest_inputs() -> None:
    hessian = torch.diag(torch.rand(K))

    stored = baselines.round_by_input(1, 0, {"q": torch.randn(N, K)}, hessian)["q"]

    salient = np.unpackbits(stored.tensors["salient_mask"].numpy(), bitorder="little").nonzero()[0]
    assert set(salient) == set(hessian.diagonal().numpy().argsort()[-24:])


@pytest.mark.parametrize("own", [True, False])
def test_walk_calibrates_on_the_right_activations(own: bool, tiny_model: Path) -> None:
    """If the first layer adds nothing, the second reads the normalised embeddings; the original one does not."""
    decoder, tokens, seen = Decoder(tiny_model, CPU), torch.arange(64).view(2, 32), {}

    def to_zero(index: int, weights: dict[str, torch.Tensor], hessian: torch.Tensor) -> dict[str, baselines.Stored]:
        seen.setdefault(index, hessian)  # of q, k and v, which come first
        return {name: baselines.Stored({}, torch.zeros_like(weight)) for name, weight in weights.items()}

    with torch.no_grad():
        baselines.walk(decoder, tokens, to_zero, own=own)

    x = decoder.source.tensor("model.embed_tokens.weight")[tokens.flatten()].float()
    x = x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt()
    expected = x.T @ x  # two sequences: 2 / n is 1
    assert_close(seen[0], expected, rms=1e-5)
    distance = float((seen[1] - expected).norm() / expected.norm())
    assert distance < 1e-5 if own else distance > 0.1


@pytest.mark.parametrize("folded", [False, True], ids=["rows", "folded"])
def test_gguf_gives_the_weights_back(folded: bool, tiny_model: Path, tmp_path: Path) -> None:
    decoder = Decoder(tiny_model, CPU)
    gguf_baselines.write_gguf(tiny_model, tmp_path / "model.gguf", folded=folded)

    weights = gguf_baselines.read_gguf(tmp_path / "model.gguf", decoder.shape)

    assert "model.layers.1.self_attn.q_proj" in weights
    for name, weight in weights.items():
        assert torch.equal(weight, decoder.source.tensor(f"{name}.weight").float()), name
    linears = sum(n * k for n, k in gguf_baselines.linear_sizes(decoder.shape).values())
    assert gguf_baselines.stored_bytes(tmp_path / "model.gguf", decoder.shape) == 4 * linears


def test_gguf_rows_are_where_others_read_them(tiny_model: Path, tmp_path: Path) -> None:
    """A wrong order of q's and k's rows survives our own way back; transformers reads GGUF by itself."""
    gguf_baselines.write_gguf(tiny_model, tmp_path / "model.gguf", folded=False)
    tokens = torch.arange(2, 34)[None]

    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)

    with torch.no_grad():
        assert_close(read(tokens).logits, load_model(tiny_model, torch.float32, CPU)(tokens).logits, rms=1e-5)


def test_folded_importance_lies_on_its_channels(tiny_model: Path) -> None:
    """Weight `i, j` of a folded matrix must be weighed by channel j."""
    shape = Decoder(tiny_model, CPU).shape
    channels, weight = torch.rand(K), torch.arange(N * K).view(N, K)

    importance = gguf_baselines.importance_of({"model.layers.1.self_attn.o_proj": channels}, shape, folded=True)

    (values,) = importance.values()
    assert list(importance) == ["blk.1.attn_output.weight"]
    assert torch.equal(values[None].expand(N // 2, -1), channels[gguf_baselines.fold("o", weight) % K])


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bench_baselines

    return bench_baselines


def test_bits_count_files_and_what_is_left_as_it_is(bench: ModuleType, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", tie_word_embeddings=True)
    task = bench.Bench(model, tmp_path, samples=2, context=32)

    bench.nearest(2, task, tmp_path / "rtn-2")
    bench.llama_cpp(None, False, task, tmp_path / "gguf")

    linears = 2 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 256)
    dense = 320 * 128 + 5 * 128
    linear_bits, model_bits = bench.bits(task, tmp_path / "rtn-2")
    header = 8 * 3 * 14 * 110 / linears  # three tensors of 14 linears, their entries up to 110 bytes
    assert 2 + 18 / 64 < linear_bits < 2 + 18 / 64 + header
    assert model_bits == pytest.approx((linear_bits * linears + 16 * dense) / (linears + dense))
    assert bench.bits(task, tmp_path / "gguf")[0] == 32
    assert bench.bits(task, model) == (16, 16)
    twin = load_model(tmp_path / "rtn-2", torch.float32, CPU)
    weight = Decoder(model, CPU).source.tensor("model.layers.1.mlp.down_proj.weight").float()
    assert torch.equal(twin.model.layers[1].mlp.down_proj.weight, baselines.nearest(weight, 2).stored().weight)
