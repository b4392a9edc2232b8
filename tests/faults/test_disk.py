"""A disk that fills costs time only: exit code 74, no half output, and the same bytes once there is room."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_model import digests

from squeeze10_quantizer import directory
from squeeze10_quantizer.cli import BAD_DATA, IO_ERROR, main
from squeeze10_quantizer.directory import lock

CALIBRATION = ["--samples", "1", "--context", "16", "--device", "cpu"]
"""8 KiB of activations: less than a layer of the tiny model."""


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Let the system refuse to write any file beyond `limit` bytes, as a full disk does; pytest's own are smaller."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def undisturbed(tiny_model: Path, tmp_path: Path) -> dict[str, str]:
    """Sums of what a run with enough room writes."""
    out = tmp_path / "whole" / "out"
    assert main(["quantize", str(tiny_model), str(out), *CALIBRATION]) == 0
    return digests(out)


@pytest.mark.parametrize(
    ("limit", "written", "kept"),
    [
        pytest.param(512, "state.json", 0, id="state"),
        pytest.param(16 * 1024, "layer-00000.safetensors", 0, id="first_layer"),
        pytest.param(64 * 1024, "model.safetensors", 2, id="output"),
    ],
)
def test_full_disk_at_a_stage(
    limit: int, written: str, kept: int, tiny_model: Path, tmp_path: Path, undisturbed: dict[str, str], capfd: Any
) -> None:
    out = tmp_path / "a" / "out"
    arguments = ["quantize", str(tiny_model), str(out), *CALIBRATION]

    with file_size_limit(limit):
        code = main(arguments)

    assert code == IO_ERROR
    assert "Reading or writing failed" in capfd.readouterr().err
    assert not out.exists()
    state = out.with_name("out.partial")
    assert len(list(state.glob("layer-*"))) == kept, f"the run was to fail at {written}"
    assert not [file for file in state.rglob("*") if file.name.endswith(".tmp") or file.name == "output"]
    assert main(arguments) == 0
    assert digests(out) == undisturbed
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_full_disk_for_the_activations(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    with file_size_limit(4 * 1024):
        assert main(["quantize", str(tiny_model), str(out), *CALIBRATION]) == IO_ERROR

    assert not out.exists()


WRITES = ("state.json", "layer-00000", "layer-00001", "config.json", "squeeze10_report.json", "SHA256SUMS", "output")


@pytest.mark.parametrize("name", WRITES)
def test_disk_that_fails_to_flush(
    name: str, tiny_model: Path, tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems say only at fsync that what was written is lost."""
    out = tmp_path / "a" / "out"
    arguments = ["quantize", str(tiny_model), str(out), *CALIBRATION]
    monkeypatch.setattr(directory, "make_durable", failing_at(name, directory.make_durable))

    assert main(arguments) == IO_ERROR

    assert not out.exists()
    monkeypatch.undo()
    assert main(arguments) == 0
    assert digests(out) == undisturbed


def failing_at(name: str, original: Callable[[Path], None]) -> Callable[[Path], None]:
    """`make_durable` that fails for one file or directory, by part of its name."""

    def make_durable(path: Path) -> None:
        if name in path.name:
            raise OSError(28, "No space left on device", str(path))
        original(path)

    return make_durable


def test_dequantize_leaves_nothing_on_a_full_disk(sound: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "dense"

    with file_size_limit(64 * 1024):
        assert main(["dequantize", str(sound["columns"]), str(out)]) == IO_ERROR

    assert list(tmp_path.iterdir()) == []
    assert main(["dequantize", str(sound["columns"]), str(out)]) == 0


def test_lock_of_a_removed_state_excludes_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it, the holder may end and remove it; a third process makes a new one."""
    path = tmp_path / "lock"
    original = directory.fcntl.flock

    def flock(file: Any, how: int) -> None:
        path.unlink()
        path.touch()
        original(file, how)

    monkeypatch.setattr(directory.fcntl, "flock", flock)

    with pytest.raises(ValueError, match="another process holds"):
        lock(path)


def test_read_only_place_is_an_input_output_error(sound: dict[str, Path], tmp_path: Path, capfd: Any) -> None:
    """Root may write anywhere, so the place is one that nobody can write to."""
    assert main(["dequantize", str(sound["columns"]), "/proc/self/dense"]) == IO_ERROR
    assert "Traceback" not in capfd.readouterr().err
    assert main(["verify", str(tmp_path / "nowhere")]) == BAD_DATA
