"""The linears that bench_rivals.py times, with random weights: ours, bf16 cuBLAS, Marlin, Machete and GemLite."""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import Shape, cold_copies, make_problem
from triton.runtime.autotuner import Autotuner
from triton.testing import do_bench

from squeeze10_kernels.mixed_linear import mixed_linear
from squeeze10_kernels.reference import scale_activations

GROUP = 128
"""Input channels that share a scale in the 4- and 1-bit rivals."""
OURS = "mixed_linear"


@dataclass(frozen=True, eq=False)
class Linear:
    """A layer as one kernel holds it.

    Attributes:
        launch: Activations `[M, K]` and one of `copies` to the output `[M, N]`.
        copies: Enough for cold weights.
        expected: Activations to the output in fp32.
        packed_bytes: What a launch must read of the weights.
    """

    launch: Callable[[torch.Tensor, Any], torch.Tensor]
    copies: list[Any]
    expected: Callable[[torch.Tensor], torch.Tensor]
    packed_bytes: int
    dtype: torch.dtype = torch.bfloat16


def from_tensors(
    launch: Callable[[torch.Tensor, Any], torch.Tensor], tensors: list[torch.Tensor], weights: torch.Tensor
) -> Linear:
    """A linear whose launches read `tensors`, which stand for the weights `[N, K]`."""
    size = sum(tensor.nbytes for tensor in tensors)
    copies = [[tensor.clone() for tensor in tensors] for _ in range(cold_copies(size))]
    exact = weights.float()
    return Linear(launch, copies, lambda x: x.float() @ exact.T, size)


def cublas(shape: Shape) -> Linear:
    N, K, _ = shape
    weights = (torch.randn(N, K, device="cuda") * 0.02).bfloat16()
    return from_tensors(lambda x, copy: torch.nn.functional.linear(x, copy[0]), [weights], weights)


def ours(shape: Shape) -> Linear:
    problem = make_problem(OURS, shape)

    def expected(x: torch.Tensor) -> torch.Tensor:
        return scale_activations(x, problem.channel_scales).float() @ problem.weights.T

    return Linear(mixed_linear, problem.copies, expected, problem.packed_bytes)


def random_groups(shape: Shape, bits: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes `[N, K]` uint8 and scales `[N, K / GROUP]`."""
    N, K, _ = shape
    codes = torch.randint(0, 1 << bits, (N, K), dtype=torch.uint8, device="cuda")
    return codes, ((torch.rand(N, K // GROUP, device="cuda") + 0.5) * 0.01).to(dtype)


def dequantize_groups(codes: torch.Tensor, scales: torch.Tensor, zero: float) -> torch.Tensor:
    """`(code - zero) scale` in fp32, `[N, K]`."""
    N, groups = scales.shape
    return ((codes.float() - zero).view(N, groups, -1) * scales.float().unsqueeze(-1)).view(codes.shape)


def pack_gptq(codes: torch.Tensor) -> torch.Tensor:
    """4-bit codes `[N, K]` as GPTQ packs them, channel 8 i + j in nibble j of word i: `[K / 8, N]` int32."""
    words = torch.zeros(codes.shape[1] // 8, codes.shape[0], dtype=torch.int32, device=codes.device)
    for j in range(8):
        words |= codes.T[j::8].int() << 4 * j
    return words


def marlin(shape: Shape) -> Linear:
    """As vLLM's MarlinLinearKernel."""
    from vllm import _custom_ops as ops
    from vllm.model_executor.layers.quantization.utils import marlin_utils
    from vllm.scalar_type import scalar_types

    N, K, _ = shape
    codes, scales = random_groups(shape, 4, torch.bfloat16)
    none = marlin_utils.marlin_make_empty_g_idx(codes.device)
    workspace = marlin_utils.marlin_make_workspace_new(codes.device)
    words = ops.gptq_marlin_repack(pack_gptq(codes), perm=none, size_k=K, size_n=N, num_bits=4)
    permuted = marlin_utils.marlin_permute_scales(scales.T.contiguous(), size_k=K, size_n=N, group_size=GROUP)

    def launch(x: torch.Tensor, copy: list[torch.Tensor]) -> torch.Tensor:
        return marlin_utils.apply_gptq_marlin_linear(
            input=x, weight=copy[0], weight_scale=copy[1], weight_zp=none, g_idx=none, g_idx_sort_indices=none,
            workspace=workspace, wtype=scalar_types.uint4b8, output_size_per_partition=N,
            input_size_per_partition=K, is_k_full=True,
        )  # fmt: skip

    return from_tensors(launch, [words, permuted], dequantize_groups(codes, scales, 8))


def machete(shape: Shape) -> Linear:
    """As vLLM's MacheteLinearKernel, its first choice on Hopper."""
    from vllm import _custom_ops as ops
    from vllm.scalar_type import scalar_types

    codes, scales = random_groups(shape, 4, torch.bfloat16)
    kind = scalar_types.uint4b8
    by_column = pack_gptq(codes).T.contiguous().T
    words = ops.machete_prepack_B(by_column, a_type=scales.dtype, b_type=kind, group_scales_type=scales.dtype)

    def launch(x: torch.Tensor, copy: list[torch.Tensor]) -> torch.Tensor:
        return ops.machete_mm(a=x, b_q=copy[0], b_type=kind, b_group_scales=copy[1], b_group_size=GROUP)

    return from_tensors(launch, [words, scales.T.contiguous()], dequantize_groups(codes, scales, 8))


def gemlite(bits: int, dtype: torch.dtype, shape: Shape) -> Linear:
    """Codes, scales and zeros in the format that GemLite recommends (HQQ)."""
    import gemlite
    from gemlite.helper import A16Wn_HQQ_INT

    codes, scales = random_groups(shape, bits, dtype)
    zero = 2 ** (bits - 1) - 0.5
    layer = A16Wn_HQQ_INT(dtype=dtype, W_nbits=bits).from_weights(codes, scales, torch.full_like(scales, zero))
    settings = layer.get_meta_args()

    def launch(x: torch.Tensor, copy: list[torch.Tensor]) -> torch.Tensor:
        return gemlite.forward_functional(x, None, copy, settings)

    tensors = [tensor.data for tensor in layer.get_tensor_args()]
    linear = from_tensors(launch, tensors, dequantize_groups(codes, scales, zero))
    return Linear(launch, linear.copies, linear.expected, linear.packed_bytes, dtype)


GEMLITE = {
    "gemlite_w4": (4, torch.bfloat16),
    "gemlite_w1": (1, torch.bfloat16),
    "gemlite_w4_fp16": (4, torch.float16),
    "gemlite_w1_fp16": (1, torch.float16),
}
RIVALS: dict[str, Callable[[Shape], Linear]] = {
    "cublas_bf16": cublas, OURS: ours, "marlin_w4": marlin, "machete_w4": machete,
    **{what: partial(gemlite, *kind) for what, kind in GEMLITE.items()},
}  # fmt: skip


def set_up_gemlite(arguments: argparse.Namespace, *, measure: bool) -> None:
    """GemLite tunes itself at the first launch of a size. Without `measure`, that only compiles the candidates."""
    import gemlite

    def bench(_: Autotuner, launch: Callable[[], object], quantiles: list[float]) -> list[float]:
        try:
            if measure:
                return do_bench(launch, warmup=5, rep=25, quantiles=quantiles)
            launch()
        except Exception as error:  # noqa: BLE001 - a configuration that does not run is not chosen
            if measure:
                print("GemLite configuration left out:", first_line(error), flush=True)
            return [float("inf")] * len(quantiles)
        return [0.0] * len(quantiles)

    Autotuner.do_bench = bench
    if arguments.gemlite_tune != "fast":  # its default
        gemlite.set_autotune(arguments.gemlite_tune)
    gemlite.set_kernel_caching(arguments.gemlite_caching)
    for path in arguments.gemlite_load:
        gemlite.load_config(str(path))


def compile_gemlite(arguments: argparse.Namespace, what: str, shape: Shape, tokens: list[int]) -> None:
    """In a worker: fill Triton's disk cache."""
    set_up_gemlite(arguments, measure=False)
    linear = RIVALS[what](shape)
    for M in tokens:
        linear.launch(torch.zeros(M, shape[1], dtype=linear.dtype, device="cuda"), linear.copies[0])
    torch.cuda.synchronize()


def prepare_gemlite(arguments: argparse.Namespace, rivals: list[str], layers: dict[str, Shape]) -> None:
    """Compile for all sizes in parallel; what is not ready in half of the time left is compiled when it is needed."""
    try:
        set_up_gemlite(arguments, measure=True)
    except Exception as error:  # noqa: BLE001 - every linear of it says so again
        print(f"LEFT OUT: GemLite: {first_line(error)}", flush=True)
        return
    batches = [[M for M in arguments.tokens if M >= 256], [M for M in arguments.tokens if M <= 4]]  # share kernels
    batches += [[M] for M in arguments.tokens if 4 < M < 256]
    start = time.time()
    with ProcessPoolExecutor(arguments.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [
            pool.submit(compile_gemlite, arguments, what, shape, batch)
            for batch in filter(None, batches)
            for what in rivals
            for shape in layers.values()
        ]
        done, late = wait(jobs, timeout=(arguments.deadline - start) / 2)
        for job in late:
            job.cancel()
    failed = [first_line(error) for job in done if (error := job.exception())]
    print(f"GemLite: {len(done)} of {len(jobs)} batches in {time.time() - start:.0f} s", *failed[:4], flush=True)


def save_gemlite(path: Path) -> None:
    """Add what GemLite has tuned to a file for `--gemlite-load`."""
    import gemlite

    gemlite.cache_config(str(path))


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"
