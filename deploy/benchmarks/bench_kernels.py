"""Time the kernels against bf16 cuBLAS at the sizes of a LLaMA model, gather of the activations included.

    PYTHONPATH=kernels python deploy/benchmarks/bench_kernels.py --out results.csv [--commit ID] [--model M] [--sweep]
        [--generic]

Weights rotate through copies of more than twice the L2 cache, so that every launch reads them from memory. Launches
are replayed from a CUDA graph; times are medians (p20, p80) of one launch. A kernel that is wrong is not timed.
`--sweep` tries many tiles and reports with the best of every size; without it, with those of `tiles.py`. `--generic`
times on any GPU what GPUs other than Hopper run, launches that do not overlap, as `mixed_linear_generic`.
"""

import argparse
import functools
import gc
import itertools
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path

import torch
import triton
import triton.language as tl
from timing import MODELS, Problem, Results, Shape, cold_copies, make_problem, relative_error, time_launches

from squeeze10_kernels.activations import gather_groups
from squeeze10_kernels.kernel_layout import PackedLinear, to_kernel_layout
from squeeze10_kernels.linear import QuantizedLinear
from squeeze10_kernels.mixed_linear import launch
from squeeze10_kernels.reference import scale_activations
from squeeze10_kernels.tiles import Gpu, Tile, WgmmaTile, gpu_of, select_tile

AnyTile = Tile | WgmmaTile | None
Job = tuple[AnyTile, int, int]
"""A tile to compile, input features and salient channels."""
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
MAX_ERROR = 5e-3
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
MMA_SHAPES = (
    (16, 1, 4),
    (16, 1, 8),
    (16, 1, 16),
    (32, 1, 2),
    (32, 1, 4),
    (32, 1, 8),
    (32, 2, 2),
    (32, 2, 4),
    (64, 1, 2),
    (64, 1, 4),
    (64, 1, 8),
    (64, 2, 2),
)
"""Rows of a warp, groups, slices for up to 8 tokens, each with any unrolling."""
SHARING_SHAPES = ((32, 2, 2), (32, 4, 1), (32, 4, 2), (64, 2, 1), (64, 2, 2))
"""For 16 tokens beside `wgmma`: groups that read the same activations."""
WIDE_SHAPES = ((32, 1, 4), (32, 1, 8), (32, 2, 2), (32, 2, 4), (64, 1, 4), (64, 2, 2))
"""For more, where there is no `wgmma`; each with any tokens and loops."""
WIDE_LOOPS = ((True, 1), (True, 4), (False, 1))
"""Paired, unroll."""
# rows, tokens, chunks, stages, ahead, early, warps, registers, each with any split; compile_kernels.py shows their cost
WGMMA_TILES = {
    16: ((64, 16, 4, 4, 3, True, 4, 80), (128, 16, 4, 4, 2, True, 8, 64)),
    32: ((64, 32, 4, 3, 3, True, 4, 80), (128, 32, 4, 3, 3, True, 8, 80)),
    64: ((64, 64, 4, 2, 3, True, 4, 80), (64, 64, 4, 3, 3, True, 4, 128), (128, 64, 4, 3, 2, False, 8, 80)),
    128: ((64, 64, 4, 2, 2, True, 4, 80), (64, 128, 4, 3, 3, True, 4, 248), (128, 128, 4, 3, 2, False, 8, 168)),
    256: (
        (64, 64, 4, 2, 2, True, 4, 80),
        (64, 64, 4, 3, 3, True, 4, 128),
        (64, 128, 4, 3, 3, True, 4, 248),
        (128, 64, 4, 3, 2, False, 8, 80),
        (128, 128, 4, 3, 2, False, 8, 168),
        (128, 256, 1, 5, 2, False, 8, 168),
        (256, 128, 2, 5, 2, False, 8, 168),
    ),
    512: (
        (64, 128, 4, 3, 3, True, 4, 248),
        (128, 128, 4, 3, 2, False, 8, 168),
        (128, 256, 1, 5, 2, False, 8, 168),
        (256, 128, 2, 5, 2, False, 8, 168),
    ),
    4096: ((128, 128, 4, 3, 2, False, 8, 168), (128, 256, 1, 5, 2, False, 8, 168), (256, 128, 2, 5, 2, False, 8, 168)),
}
SPLITS = (1, 2, 3, 4, 6, 8)


def candidate_tiles(M: int, N: int, gpu: Gpu) -> list[AnyTile]:
    """For M tokens, without those that leave most of the GPU idle or split what fills it."""
    if M > 8 and not gpu.hopper:
        tokens = [tokens for tokens in (16, 32, 64) if tokens < 2 * M]
        loops = itertools.product(WIDE_SHAPES, tokens, WIDE_LOOPS)
        return [None, *(Tile(*shape, BM, paired, unroll) for shape, BM, (paired, unroll) in loops)]
    if M <= 8:
        shapes = itertools.product(MMA_SHAPES, (2, 3, 5, 6))
        tiles = [Tile(*shape, 8, paired=True, unroll=unroll) for shape, unroll in shapes]
        return [tile for tile in tiles if 700 < N // tile.rows * tile.slices < 9000]
    sharing = itertools.product(SHARING_SHAPES, (1, 2, 5)) if M <= 16 else ()
    beside = [Tile(*shape, 16, paired=True, unroll=unroll) for shape, unroll in sharing]
    bucket = next(bucket for bucket in WGMMA_TILES if bucket >= M)
    wide = [WgmmaTile(*tile, split=split) for tile, split in itertools.product(WGMMA_TILES[bucket], SPLITS)]
    return [*beside, *(tile for tile in wide if tile.split == 1 or 60 < tile.split * tile.tiles(M, N) < 450)]


@functools.cache
def few_rows(K: int, S: int) -> PackedLinear:
    """A layer of as many channels, which are what kernels are specialised on."""
    salient = torch.arange(K, device="cuda") < S
    codes = torch.zeros(256, K, dtype=torch.uint8, device="cuda")
    zeros = torch.zeros(256, 3, device="cuda").half()
    return to_kernel_layout(QuantizedLinear(codes, salient, zeros, torch.ones(K, device="cuda").half()))


def compile_in_worker(jobs: list[Job], pdl: bool) -> int:
    """Fill Triton's disk cache."""
    failed = 0
    for tile, K, S in jobs:
        try:
            launch(torch.zeros(2, K, dtype=torch.bfloat16, device="cuda"), few_rows(K, S), None, tile, pdl=pdl)
        except Exception as error:  # noqa: BLE001 - a tile that does not fit is left out of the sweep
            failed += 1
            print("does not compile:", tile, str(error)[:120], flush=True)
    return failed


def compile_all(jobs: list[Job], workers: int, pdl: bool) -> None:
    start = time.time()
    batches = [jobs[i::workers] for i in range(workers)]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        failed = sum(pool.map(partial(compile_in_worker, pdl=pdl), batches))
    print(f"compiled {len(jobs) - failed} of {len(jobs)} tiles in {time.time() - start:.0f} s", flush=True)


class Bench:
    def __init__(self, out: Path, commit: str, dtype: torch.dtype, gpu: Gpu) -> None:
        self.results = Results(out, commit)
        self.dtype = dtype
        self.gpu = gpu

    def record(
        self, problem: Problem, tokens: int, what: str, times: tuple[float, float, float], *,
        moved: int = 0, tile: AnyTile = None, error: float = 0.0,
    ) -> None:  # fmt: skip
        N, K = problem.packed.out_features, problem.packed.in_features
        name = "-".join(map(str, astuple(tile))) if tile else ""
        self.results.record(problem.name, N, K, tokens, what, times, moved=moved, tile=name, error=error)

    @functools.cache  # noqa: B019 - one bench lives as long as the process
    def activations(self, problem: Problem, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations and the fp32 output that the format prescribes."""
        x = torch.randn(tokens, problem.packed.in_features, device="cuda", dtype=self.dtype)
        return x, scale_activations(x, problem.channel_scales).float() @ problem.weights.T

    def time_cublas(self, problem: Problem, tokens: int) -> float:
        x, _ = self.activations(problem, tokens)
        weights = problem.weights.to(self.dtype)
        copies = [weights.clone() for _ in range(cold_copies(weights.nbytes))]
        times = time_launches([partial(torch.nn.functional.linear, x, w) for w in copies], 20)
        self.record(problem, tokens, f"cublas_{DTYPES[self.dtype]}", times, moved=weights.nbytes)
        return times[0]

    def time_tile(self, problem: Problem, tokens: int, tile: AnyTile, what: str, replays: int) -> float:
        """Gather and multiplication, as `mixed_linear` launches them."""
        x, expected = self.activations(problem, tokens)
        error = relative_error(launch(x, problem.packed, None, tile, pdl=self.gpu.pdl), expected)
        if not error < MAX_ERROR:
            print(f"WRONG, not timed: {problem.name} {tokens} tokens {tile}: error {error:.3g}", flush=True)
            return float("inf")
        times = time_launches(
            [partial(launch, x, copy, None, tile, pdl=self.gpu.pdl) for copy in problem.copies], replays
        )
        self.record(problem, tokens, what, times, moved=problem.packed_bytes, tile=tile, error=error)
        return times[0]


@triton.jit
def _read_kernel(words_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + tl.program_id(0), tl.sum(tl.load(words_ptr + at), axis=0))


def floors(bench: Bench, problems: dict[str, Problem]) -> None:
    """What the fastest conceivable kernel costs here: a launch that reads next to nothing, one that reads the words."""
    out = torch.zeros(1 << 20, dtype=torch.int32, device="cuda")
    tiny = torch.zeros(2048 * 132, dtype=torch.int32, device="cuda")
    line = [f"launch {time_launches([lambda: _read_kernel[(132,)](tiny, out, BLOCK=1024)] * 50, 20)[0]:.2f}"]
    for name, problem in problems.items():
        words = [copy.words.view(torch.int32).flatten() for copy in problem.copies]
        launches = [partial(_read_kernel[(len(w) // 4096,)], w, out, BLOCK=4096) for w in words]
        times = time_launches(launches, 20)
        bench.record(problem, 0, "read_only", times, moved=problem.packed.words.nbytes)
        one = partial(gather_groups, bench.activations(problem, 1)[0], problem.packed, pdl=bench.gpu.pdl)
        gather = time_launches([one] * 20, 20)
        bench.record(problem, 1, "gather_only", gather)
        line.append(f"{name}: read {times[0]:.2f}, gather {gather[0]:.2f}")
    print("floors in us | " + " | ".join(line), flush=True)


def sweep(
    bench: Bench,
    problems: dict[str, Problem],
    shapes: dict[str, Shape],
    tokens: list[int],
    workers: int,
    seconds: float,
) -> dict[tuple[int, str], AnyTile]:
    """The best tile for every (tokens, layer); all are compiled ahead, in parallel."""
    plans = {
        (M, name): candidate_tiles(M, problems[name].packed.out_features, bench.gpu)
        for M in tokens
        for name in problems
    }
    jobs = {(tile, *shapes[name][1:]): None for (_, name), tiles in plans.items() for tile in tiles}
    compile_all(list(jobs), workers, bench.gpu.pdl)
    best, start = {}, time.time()
    for (M, name), tiles in plans.items():
        ranked = []
        for tile in tiles:
            if time.time() - start > seconds:
                print(f"out of time: {M} {name} swept in part", flush=True)
                break
            try:
                ranked.append((bench.time_tile(problems[name], M, tile, "sweep", 5), tile))
            except Exception as error:  # noqa: BLE001 - a tile that does not fit is left out of the sweep
                print("does not run:", tile, str(error)[:100], flush=True)
        ranked.sort(key=lambda row: row[0])
        best.update({(M, name): ranked[0][1]} if ranked else {})
        for us, tile in ranked[:4]:
            print(f"best {M:4d} {name:8s} {us:8.2f} us  {astuple(tile) if tile else ''}", flush=True)
    return best


def report(bench: Bench, problems: dict[str, Problem], best: dict[tuple[int, str], AnyTile], tokens: list[int]) -> None:
    print("\ntokens | cuBLAS / ours us, per layer | sums and speed-up", flush=True)
    what = "mixed_linear" if bench.gpu == gpu_of(torch.device("cuda")) else "mixed_linear_generic"
    for M in tokens:
        pairs = {}
        for name, problem in problems.items():
            chosen = select_tile(M, problem.packed.out_features, problem.packed.in_features, bench.gpu)
            ours = bench.time_tile(problem, M, best.get((M, name), chosen), what, 20)
            pairs[name] = (bench.time_cublas(problem, M), ours)
        base, ours = map(sum, zip(*pairs.values(), strict=True))
        cells = " | ".join(f"{name} {a:.1f}/{b:.1f}" for name, (a, b) in pairs.items())
        print(f"{M:5d} | {cells} | {base:.1f} {ours:.1f} {base / ours:.2f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--model", choices=MODELS, default="llama2-7b")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--dtype", choices=DTYPES.values(), default="bf16", help="of the activations")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--sweep-seconds", type=float, default=200, help="after compiling; the report follows anyway")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--generic", action="store_true", help="what GPUs of compute capability 8.0 run")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    dtype = next(dtype for dtype, name in DTYPES.items() if name == arguments.dtype)
    gpu = gpu_of(torch.device("cuda"))
    bench = Bench(arguments.out, arguments.commit, dtype, replace(gpu, capability=(8, 0)) if arguments.generic else gpu)
    shapes = MODELS[arguments.model]
    problems = {name: make_problem(name, shape) for name, shape in shapes.items()}
    gc.freeze()  # every capture collects garbage
    floors(bench, problems)
    limits = (arguments.workers, arguments.sweep_seconds)
    best = sweep(bench, problems, shapes, arguments.tokens, *limits) if arguments.sweep else {}
    report(bench, problems, best, arguments.tokens)


if __name__ == "__main__":
    main()
