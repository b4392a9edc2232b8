"""The kernels of one decode step, as the profiler sees them."""

import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

STEPS = 16
SHOWN = 24
NAME_LENGTH = 100


def kernels_of(run: Callable[[], None]) -> list[tuple[float, float, str]]:
    """Start and length in microseconds, and name, of what ran on the GPU, in order."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() or () if event.device_type == torch.autograd.DeviceType.CUDA]
    return sorted((event.time_range.start, event.time_range.elapsed_us(), event.name) for event in events)


def write_decode_step(generate: Callable[[int], None], path: Path) -> None:
    """One line a kernel of the last step of some: start, microseconds, name; prints their sums by name.

    Args:
        generate: So many tokens.
    """
    generate(STEPS + 1)
    first, all_steps = kernels_of(lambda: generate(1)), kernels_of(lambda: generate(STEPS + 1))
    count = round((len(all_steps) - len(first)) / STEPS)
    steps = all_steps[-count * (STEPS - 1) :]
    last = steps[-count:]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("start_us", "us", "kernel"))
        writer.writerows((f"{at - last[0][0]:.2f}", f"{us:.2f}", name[:NAME_LENGTH]) for at, us, name in last)
    wall = (steps[-1][0] - steps[0][0]) / (STEPS - 1)
    print(f"{path.stem}: {count} kernels a step, a step every {wall:.0f} us, the GPU idle {idle(last):.0f} us of it")
    sums: dict[str, list[float]] = defaultdict(list)
    for _, us, name in last:
        sums[name].append(us)
    for name, each in sorted(sums.items(), key=lambda item: -sum(item[1]))[:SHOWN]:
        print(f"{sum(each):8.1f} us in {len(each):4d}  {name[:NAME_LENGTH]}", flush=True)


def idle(kernels: list[tuple[float, float, str]]) -> float:
    """Microseconds between the first start and the last end in which none runs."""
    gaps, end = 0.0, kernels[0][0]
    for start, us, _ in kernels:
        gaps += max(0.0, start - end)
        end = max(end, start + us)
    return gaps
