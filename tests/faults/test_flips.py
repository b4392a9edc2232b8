"""Flipped bytes: refused, or without any effect beyond the tensor that holds them. 10,000 of them: `make soak`."""

import shutil
from pathlib import Path

import pytest
import torch
from faults.spoiling import SINGLE_NAME, sharded
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from squeeze10_kernels import BadInput, Checkpoint, dequantize, open_checkpoint
from squeeze10_kernels.checkpoint import INDEX_NAME, read_json
from squeeze10_quantizer.decoder import empty_model
from squeeze10_quantizer.directory import write_sums
from squeeze10_quantizer.inspection import inspect_checkpoint, verify_checkpoint

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden_v1"
TARGETS = (
    *((base, file) for base in ("columns", "elements") for file in ("config.json", SINGLE_NAME, "SHA256SUMS")),
    *(
        ("shards", file)
        for file in (INDEX_NAME, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    ),
)
"""Checkpoint and file."""
flips = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=3)
"""Places, as parts of a file's length, and what is xored there."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Golden checkpoints with sums: both masks in one file, and one in two shards."""
    place = tmp_path_factory.mktemp("bases")
    for name, source in {"columns": "columns", "elements": "elements", "shards": "columns"}.items():
        shutil.copytree(GOLDEN / f"golden_v1_{source}", place / name)
    sharded(place / "shards")
    for path in place.iterdir():
        write_sums(path)
    return {path.name: path for path in place.iterdir()}


@pytest.fixture(scope="module")
def before(bases: dict[str, Path]) -> dict[str, dict[str, torch.Tensor]]:
    """What each of them means."""
    return {name: meaning(open_checkpoint(path)) for name, path in bases.items()}


def meaning(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Name to value of every parameter, as every reader would have it."""
    weights = {name: dequantize(checkpoint.layer(name)) for name in checkpoint.quantized}
    return weights | {name: checkpoint.directory.tensor(name) for name in checkpoint.dense_tensors}


def flip(path: Path, changes: list[tuple[float, int]]) -> list[int]:
    """Xor bytes of a file; the places."""
    data = bytearray(path.read_bytes())
    places = [int(part * len(data)) for part, _ in changes]
    for place, (_, mask) in zip(places, changes, strict=True):
        data[place] ^= mask
    path.write_bytes(data)
    return places


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(target=st.sampled_from(TARGETS), changes=flips)
@example(target=("columns", SINGLE_NAME), changes=[(0.0, 255)])
@example(target=("elements", SINGLE_NAME), changes=[(0.999, 1)])
def test_flipped_bytes(
    bases: dict[str, Path],
    before: dict[str, dict[str, torch.Tensor]],
    target: tuple[str, str],
    changes: list[tuple[float, int]],
) -> None:
    """Readers without sums: refused, or lawful values, and equal ones in all but one parameter a byte.

    Any other exception than `BadInput` fails the test, and so does a value that is not finite.
    """
    base, file = target
    path = bases[base] / file
    original = path.read_bytes()
    body = 8 + int.from_bytes(original[:8], "little") if file.endswith(".safetensors") else len(original)
    try:
        places = flip(path, changes)
        unchanged = path.read_bytes() == original
        accepted = read(bases[base], config=file == "config.json")
        refused_by_sums = not unchanged and verify_refuses(bases[base])
    finally:
        path.write_bytes(original)

    assert unchanged or refused_by_sums, "verify must refuse every changed byte of every file"
    event(f"{file}: {'refused' if accepted is None else 'accepted'}")
    if accepted is not None:
        assert len(different(before[base], accepted)) <= sum(place >= body for place in places)


def read(path: Path, *, config: bool) -> dict[str, torch.Tensor] | None:
    """What a checkpoint means, or None if it is refused; with `config`, transformers must take or refuse that too."""
    try:
        inspect_checkpoint(path)
        if config:
            empty_model(path, read_json(path / "config.json"), torch.float32)
        return meaning(open_checkpoint(path))
    except BadInput:
        return None


def verify_refuses(path: Path) -> bool:
    try:
        verify_checkpoint(path)
    except BadInput:
        return True
    return False


def different(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    """Names of parameters that changed; all are there, of the same shape and finite."""
    assert before.keys() == after.keys()
    assert all(tensor.isfinite().all() for tensor in after.values())
    return [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
