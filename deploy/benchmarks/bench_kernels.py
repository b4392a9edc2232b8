"""Time the mixed kernels against bf16 cuBLAS at the sizes of LLaMA2-7B.

    PYTHONPATH=kernels python deploy/benchmarks/bench_kernels.py --out results.csv [--commit ID] [--sweep]

Weights rotate through copies of more than twice the L2 cache, so that every launch reads them from memory. Launches
are replayed from a CUDA graph; times are medians (p20, p80) of one launch. A kernel that is wrong is not timed.
`--sweep` tries many tiles and reports with the best of every size; without it, with those of `tiles.py`.
"""

import argparse
import csv
import dataclasses
import functools
import gc
import itertools
import multiprocessing
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
import triton
import triton.language as tl
from timing import COLD_BYTES, LAYERS, Problem, make_problem, relative_error, time_launches

from squeeze10_kernels.activations import gather_activations
from squeeze10_kernels.decode_weights import decode_rows_into, decoded_gemm
from squeeze10_kernels.kernel_layout import PackedLinear, to_kernel_layout
from squeeze10_kernels.linear import QuantizedLinear
from squeeze10_kernels.mixed_gemm import mixed_gemm
from squeeze10_kernels.reference import scale_activations
from squeeze10_kernels.tiles import BUCKETS, Tile, bucket_of, select_tile

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SWEPT_TOKENS = {8: (1, 8), 16: (16,), 32: (32,), 64: (64,), 128: (128,)}
MAX_ERROR = 5e-3
# (rows, groups, slices, tokens), (paired, unroll) by bucket; compile_kernels.py shows what they cost
NARROW = ((16, 1, 4), (16, 1, 8), (32, 1, 4), (32, 1, 8), (64, 1, 4), (64, 1, 8))
MIDDLE = ((32, 1, 4), (32, 1, 8), (32, 2, 2), (32, 2, 4), (32, 4, 2), (64, 1, 4), (64, 1, 8), (64, 2, 2))
CANDIDATES: dict[int, tuple[list[tuple[int, int, int, int]], tuple[tuple[bool, int], ...]]] = {
    8: ([(*shape, 8) for shape in NARROW], ((True, 1), (True, 2), (True, 5))),
    16: ([(*shape, 16) for shape in NARROW], ((True, 1), (True, 2), (True, 4))),
    32: ([(*shape, tokens) for shape in MIDDLE for tokens in (16, 32)], ((True, 1), (False, 1))),
    64: ([(*shape, tokens) for shape in MIDDLE for tokens in (32, 64)], ((False, 1),)),
    128: ([(*shape, 64) for shape in MIDDLE], ((False, 1),)),
}
WARPS = range(700, 6500)
"""Of a launch worth trying, on 132 multiprocessors."""


def candidate_tiles(bucket: int, N: int) -> list[Tile]:
    shapes, loops = CANDIDATES[bucket]
    tiles = []
    for (rows, groups, slices, tokens), (paired, unroll) in itertools.product(shapes, loops):
        warps = -(-N // (rows * groups)) * (bucket // tokens) * groups * slices
        if warps in WARPS:
            tiles.append(Tile(rows, groups, slices, tokens, paired, unroll))
    return tiles


def compile_in_worker(tiles: list[Tile]) -> int:
    """Fill Triton's disk cache; the sizes are small, what they are specialised on is as in `LAYERS`."""
    salient = torch.zeros(4096, dtype=torch.bool, device="cuda")
    salient[:832] = True
    codes = torch.zeros(256, 4096, dtype=torch.uint8, device="cuda")
    zeros = torch.zeros(256, 3, device="cuda").half()
    packed = to_kernel_layout(QuantizedLinear(codes, salient, zeros, torch.ones(4096, device="cuda").half()))
    x, sums = gather_activations(torch.zeros(2, 4096, dtype=torch.bfloat16, device="cuda"), packed, grouped=True)
    failed = 0
    for tile in tiles:
        try:
            mixed_gemm(x, sums, packed, None, tile=tile)
        except Exception as error:  # noqa: BLE001 - a tile that does not fit is left out of the sweep
            failed += 1
            print("does not compile:", tile, str(error)[:120], flush=True)
    return failed


def compile_all(tiles: list[Tile], workers: int) -> None:
    start = time.time()
    batches = [tiles[i::workers] for i in range(workers)]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        failed = sum(pool.map(compile_in_worker, batches))
    print(f"compiled {len(tiles) - failed} of {len(tiles)} tiles in {time.time() - start:.0f} s", flush=True)


class Bench:
    def __init__(self, out: Path, commit: str) -> None:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
        self.context = (torch.cuda.get_device_name(), driver, torch.__version__, triton.__version__, commit)
        self.file = out.open("w", newline="")
        self.writer = csv.writer(self.file)
        head = "gpu driver torch triton commit layer N K tokens what tile us us_p20 us_p80 GB_per_s copy_share error"
        self.writer.writerow(head.split())
        big = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(big)
        self.copy_rate = 2 * big.nbytes / time_launches([lambda: target.copy_(big)], 10)[0] / 1e3  # GB/s
        print(f"{self.context}, copy {self.copy_rate:.0f} GB/s", flush=True)

    def record(
        self, problem: Problem, tokens: int, what: str, times: tuple[float, float, float], *,
        moved: int = 0, tile: Tile | None = None, error: float = 0.0,
    ) -> None:  # fmt: skip
        N, K, _ = LAYERS[problem.name]
        rate = moved / times[0] / 1e3
        name = "-".join(map(str, dataclasses.astuple(tile))) if tile else ""
        numbers = [f"{value:.2f}" for value in times] + [f"{rate:.0f}", f"{rate / self.copy_rate:.3f}", f"{error:.2e}"]
        self.writer.writerow([*self.context, problem.name, N, K, tokens, what, name, *numbers])
        self.file.flush()

    @functools.cache  # noqa: B019 - one bench lives as long as the process
    def activations(self, problem: Problem, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations and the fp32 output that the format prescribes."""
        x = torch.randn(tokens, LAYERS[problem.name][1], device="cuda", dtype=torch.bfloat16)
        return x, scale_activations(x, problem.channel_scales).float() @ problem.weights.T

    def time_cublas(self, problem: Problem, tokens: int) -> float:
        x, _ = self.activations(problem, tokens)
        weights = problem.weights.bfloat16()
        copies = [weights.clone() for _ in range(max(2, -(-COLD_BYTES // weights.nbytes)))]
        times = time_launches([partial(torch.nn.functional.linear, x, w) for w in copies], 20)
        self.record(problem, tokens, "cublas_bf16", times, moved=weights.nbytes)
        return times[0]

    def time_mixed(self, problem: Problem, tokens: int, tile: Tile, what: str = "mixed", replays: int = 20) -> float:
        x, expected = self.activations(problem, tokens)
        gathered = gather_activations(x, problem.packed, grouped=True)
        error = relative_error(mixed_gemm(*gathered, problem.packed, None, tile=tile), expected)
        if not error < MAX_ERROR:
            print(f"WRONG, not timed: {problem.name} {tokens} tokens {tile}: error {error:.3g}", flush=True)
            return float("inf")
        launches = [partial(mixed_gemm, *gathered, copy, None, tile=tile) for copy in problem.copies]
        times = time_launches(launches, replays)
        self.record(problem, tokens, what, times, moved=problem.packed_bytes, tile=tile, error=error)
        return times[0]

    def time_mixed_with_gather(
        self, problem: Problem, tokens: int, tile: Tile, what: str = "mixed_with_gather", replays: int = 20
    ) -> float:
        x, expected = self.activations(problem, tokens)

        def launch(copy: PackedLinear) -> torch.Tensor:
            return mixed_gemm(*gather_activations(x, copy, grouped=True), copy, None, tile=tile)

        error = relative_error(launch(problem.packed), expected)
        if not error < MAX_ERROR:
            print(f"WRONG, not timed: {problem.name} {tokens} tokens {tile}: error {error:.3g}", flush=True)
            return float("inf")
        times = time_launches([partial(launch, copy) for copy in problem.copies], replays)
        self.record(problem, tokens, what, times, moved=problem.packed_bytes, tile=tile, error=error)
        return times[0]

    def time_decoded(self, problem: Problem, tokens: int, scratch: int) -> float:
        x, expected = self.activations(problem, tokens)

        def launch(packed: PackedLinear) -> torch.Tensor:
            return decoded_gemm(gather_activations(x, packed, grouped=False)[0], packed, None, scratch_bytes=scratch)

        error = relative_error(launch(problem.packed), expected)
        if not error < MAX_ERROR:
            print(f"WRONG, not timed: decoded {problem.name} {tokens} tokens: error {error:.3g}", flush=True)
            return float("inf")
        times = time_launches([partial(launch, copy) for copy in problem.copies[:4]], 10)
        self.record(problem, tokens, f"decoded_with_gather_{scratch >> 20}MiB", times, error=error)
        return times[0]


@triton.jit
def _read_kernel(words_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + tl.program_id(0), tl.sum(tl.load(words_ptr + at), axis=0))


def floors(bench: Bench, problems: dict[str, Problem]) -> None:
    """What the fastest conceivable kernel costs here: a launch that does nothing, one that only reads the words."""
    out = torch.zeros(1 << 20, dtype=torch.int32, device="cuda")
    tiny = torch.zeros(2048 * 132, dtype=torch.int32, device="cuda")
    line = [f"launch {time_launches([lambda: _read_kernel[(132,)](tiny, out, BLOCK=1024)] * 50, 20)[0]:.2f}"]
    for name, problem in problems.items():
        words = [copy.words.view(torch.int32).flatten() for copy in problem.copies]
        launches = [partial(_read_kernel[(len(w) // 4096,)], w, out, BLOCK=4096) for w in words]
        times = time_launches(launches, 20)
        bench.record(problem, 0, "read_only", times, moved=problem.packed.words.nbytes)
        gather = time_launches(
            [partial(gather_activations, bench.activations(problem, 1)[0], problem.packed, grouped=True)] * 20, 20
        )
        bench.record(problem, 1, "gather_only", gather)
        scratch = torch.empty(2048, len(problem.packed.channels), dtype=torch.bfloat16, device="cuda")
        launches = [partial(decode_rows_into, scratch, copy, 0) for copy in problem.copies[:8]]
        decode = time_launches(launches, 20)
        bench.record(problem, 0, "decode_2048_rows", decode, moved=scratch.nbytes)
        rate = scratch.nbytes / decode[0] / 1e3
        line.append(f"{name}: read {times[0]:.2f}, gather {gather[0]:.2f}, decode {rate:.0f} GB/s")
    print("floors in us | " + " | ".join(line), flush=True)


def sweep(
    bench: Bench, problems: dict[str, Problem], workers: int, seconds: float
) -> dict[tuple[int, str], list[Tile]]:
    """The best tiles first for every (bucket, layer), by the sum over the swept token counts."""
    plans = {(bucket, name): candidate_tiles(bucket, LAYERS[name][0]) for bucket in SWEPT_TOKENS for name in problems}
    compile_all(list(dict.fromkeys(itertools.chain(*plans.values()))), workers)
    best, start = {}, time.time()
    for (bucket, name), tiles in plans.items():
        ranked = []
        for tile in tiles:
            if time.time() - start > seconds:
                print(f"out of time: {bucket} {name} swept in part", flush=True)
                break
            try:
                each = [bench.time_mixed_with_gather(problems[name], M, tile, "sweep", 5) for M in SWEPT_TOKENS[bucket]]
            except Exception as error:  # noqa: BLE001 - a tile that does not fit is left out of the sweep
                print("does not run:", tile, str(error)[:100], flush=True)
                continue
            ranked.append((sum(each), each, tile))
        ranked.sort(key=lambda row: row[0])
        best[bucket, name] = [tile for _, _, tile in ranked]
        for _, each, tile in ranked[:4]:
            show = " ".join(f"{us:7.2f}" for us in each)
            print(f"best {bucket:3d} {name:8s} {show} us  {dataclasses.astuple(tile)}", flush=True)
    print(f"swept in {time.time() - start:.0f} s", flush=True)
    return best


def report(
    bench: Bench, problems: dict[str, Problem], best: dict[tuple[int, str], list[Tile]], tokens: list[int]
) -> None:
    print(
        "\ntokens  | per layer: cuBLAS us / ours us (with gather) | sum: cuBLAS, ours, speed-up, with gather",
        flush=True,
    )
    for M in tokens:
        sums, cells = [0.0, 0.0, 0.0], []
        for name, problem in problems.items():
            N = LAYERS[name][0]
            base = bench.time_cublas(problem, M)
            decoded = min((bench.time_decoded(problem, M, mib << 20) for mib in (32, 64)), default=0) if M > 64 else 1e9
            tiles = best.get((bucket_of(M) or BUCKETS[-1], name), [])[:2] or [select_tile(min(M, BUCKETS[-1]), N)]
            timed = {tile: bench.time_mixed_with_gather(problem, M, tile) for tile in tiles if tile and M <= 256}
            gathered = min(timed.values(), default=1e9)
            alone = bench.time_mixed(problem, M, min(timed, key=timed.__getitem__)) if timed else 1e9
            ours, whole = min(alone, decoded), min(gathered, decoded)
            mark = "d" if decoded < alone else ""
            cells.append(f"{name} {base:.1f}/{ours:.1f}{mark} ({whole:.1f})")
            sums = [a + b for a, b in zip(sums, (base, ours, whole), strict=True)]
        base, ours, whole = sums
        print(
            f"{M:5d} | {' | '.join(cells)} | {base:.1f} {ours:.1f} {base / ours:.2f}x, {whole:.1f} {base / whole:.2f}x",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--sweep-seconds", type=float, default=200, help="after compiling; the report follows anyway")
    parser.add_argument("--workers", type=int, default=14)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    bench = Bench(arguments.out, arguments.commit)
    problems = {name: make_problem(name) for name in LAYERS}
    gc.freeze()  # every capture collects garbage
    floors(bench, problems)
    best = sweep(bench, problems, arguments.workers, arguments.sweep_seconds) if arguments.sweep else {}
    report(bench, problems, best, arguments.tokens)


if __name__ == "__main__":
    main()
