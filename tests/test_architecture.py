"""Rules of the source tree that no single module can keep: who imports whom, names, sizes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "squeeze10_kernels": ROOT / "kernels" / "squeeze10_kernels",
    "squeeze10_quantizer": ROOT / "quantizer" / "squeeze10_quantizer",
    "squeeze10_vllm": ROOT / "squeeze10_vllm",
}
MAY_IMPORT = {
    "squeeze10_kernels": set(),
    "squeeze10_quantizer": {"squeeze10_kernels"},
    "squeeze10_vllm": {"squeeze10_kernels"},
}
TORCH_ONLY = ("format", "packing", "linear", "reference")
MAX_LINES = 300


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imported_packages(source: Path) -> set[str]:
    """Top-level names of all imports, also those inside functions; relative imports count as none."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("folder", ["kernels", "quantizer"])
def test_workshop_folders_are_no_packages(folder: str) -> None:
    """`kernels/__init__.py` would shadow Hugging Face's `kernels` for transformers."""
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_import_direction(package: str) -> None:
    forbidden = set(PACKAGES) - MAY_IMPORT[package] - {package}

    found = {
        source.name: imported & forbidden
        for source in sources(PACKAGES[package])
        if (imported := imported_packages(source)) & forbidden
    }

    assert not found


@pytest.mark.parametrize("module", TORCH_ONLY)
def test_format_and_reference_need_torch_only(module: str) -> None:
    """Checked in a fresh process, so that what their imports import counts too."""
    code = (
        f"import sys, squeeze10_kernels, squeeze10_kernels.{module}; "
        "print(*{'triton', 'vllm', 'transformers'} & set(sys.modules))"
    )
    imported = imported_packages(PACKAGES["squeeze10_kernels"] / f"{module}.py")

    assert not imported & {"triton", "vllm", "transformers"}
    assert fresh_python(code) == ""


def test_plugin_import_is_light() -> None:
    """vLLM loads every installed plugin in each of its processes, also for models that are not ours."""
    code = "import sys, squeeze10_vllm; print(*{'vllm', 'triton', 'torch'} & set(sys.modules))"

    assert fresh_python(code) == ""


def fresh_python(code: str) -> str:
    """What a new interpreter prints, started outside the repository."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    return result.stdout.strip()


@pytest.mark.parametrize("folder", [*PACKAGES.values(), ROOT / "deploy", ROOT / "tests"], ids=lambda path: path.name)
def test_files_stay_short_and_named_after_their_noun(folder: Path) -> None:
    lengths = {source.name: len(source.read_text(encoding="utf-8").splitlines()) for source in sources(folder)}

    assert lengths, f"{folder} has no Python files"
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}
    assert not {"utils.py", "util.py", "helpers.py", "helper.py"} & set(lengths)
