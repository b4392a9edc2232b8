"""Write requirements.txt: every package of the image in one version, with the sums of the files that fit the image.

python deploy/docker/lock.py   # needs uv: pip install uv

uv chooses the versions for Python 3.12 on x86-64 Linux. `pip install --require-hashes` takes nothing else.
"""

import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

HERE: Final = Path(__file__).parent
PYTHON: Final = (3, 12)
PLATFORMS: Final = [f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)] + ["manylinux2014_x86_64", "any"]
FITTING: Final[set[Tag]] = {*cpython_tags(PYTHON, platforms=PLATFORMS), *compatible_tags(PYTHON, "cp312", PLATFORMS)}
COMMAND: Final = ["uv", "pip", "compile", "--format", "pylock.toml", "--no-header", "--python-version", "3.12"]


def locked_packages() -> list[dict[str, Any]]:
    """What uv resolves requirements.in to."""
    command = [*COMMAND, "--python-platform", "x86_64-manylinux_2_36", str(HERE / "requirements.in")]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    packages: list[dict[str, Any]] = tomllib.loads(text)["packages"]
    return packages


def sums(package: dict[str, Any]) -> list[str]:
    """sha256 of the package's wheels that fit the image; of its source if none does."""
    names = [(wheel.get("name") or wheel["url"].rsplit("/", 1)[-1], wheel) for wheel in package.get("wheels", [])]
    files = [wheel for name, wheel in names if parse_wheel_filename(name)[3] & FITTING] or [package["sdist"]]
    return sorted(file["hashes"]["sha256"] for file in files)


def main() -> None:
    lines = []
    for package in locked_packages():
        lines.append(f"{package['name']}=={package['version']}")
        lines += [f"    --hash=sha256:{value}" for value in sums(package)]
    text = "\n".join(lines).replace("\n    --hash", " \\\n    --hash")
    (HERE / "requirements.txt").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
