"""A malformed checkpoint is refused by every reader with one sentence, and leaves nothing behind."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import malformed_configs, malformed_files, malformed_headers, malformed_tensors
from faults.spoiling import ALL, FAULTS, FORMATS

from squeeze10_quantizer.cli import BAD_DATA, main
from squeeze10_quantizer.directory import write_sums

MODULES = (malformed_configs, malformed_files, malformed_headers, malformed_tensors)
"""They fill `FAULTS`."""
MAX_BYTES = 200 * 2**20
"""What a refusal may take."""
HEAVY = [name for name in FAULTS if name.startswith(("header_", "config_deep", "config_huge", "sums_huge", "num_l"))]

Refusal = Callable[[str, Path], tuple[int, str]]


def spoiled(name: str, sound: dict[str, Path], place: Path) -> Path:
    """A copy of a sound checkpoint with one fault."""
    fault = FAULTS[name]
    path = Path(shutil.copytree(sound[fault.base], place / "model"))
    fault.spoil(path)
    if fault.sealed:
        seal(path)
    return path


def seal(path: Path) -> None:
    """Write the sums anew, as who spoils a checkpoint on purpose does; without those of pipes and directories."""
    (path / "SHA256SUMS").unlink()
    odd = {file: path.with_name(file.name) for file in path.iterdir() if not file.is_file()}
    for file, elsewhere in odd.items():
        file.rename(elsewhere)
    write_sums(path)
    for file, elsewhere in odd.items():
        elsewhere.rename(file)


def test_corpus_covers_the_plan() -> None:
    """Fewer faults than were promised would pass unnoticed."""
    kinds = {fault.kind for fault in FAULTS.values()}

    assert {f"A{number}" for number in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 18)} <= kinds
    assert len(FAULTS) >= 200


@pytest.mark.parametrize("base", FORMATS)
@pytest.mark.parametrize("reader", ALL)
def test_sound_checkpoint_is_read(base: str, reader: str, sound: dict[str, Path], refusal: Refusal) -> None:
    """A reader that refuses everything would pass all other tests."""
    assert refusal(reader, sound[base])[0] == 0


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_refused(name: str, sound: dict[str, Path], tmp_path: Path, refusal: Refusal) -> None:
    path = spoiled(name, sound, tmp_path)

    for reader in FAULTS[name].readers:
        code, message = refusal(reader, path)

        assert code == BAD_DATA, f"{reader}: {message}"
        assert FAULTS[name].says in message, reader
        assert re.fullmatch(r"squeeze10: [ -~]+\n", message), f"{reader} must say one line without escapes"
        assert len(message) < 1000, reader
        assert path.name in message, f"{reader} must say which directory is meant"
    assert not (tmp_path / "dense").exists()


@pytest.mark.parametrize("name", HEAVY)
def test_refusal_takes_little_memory(name: str, sound: dict[str, Path], tmp_path: Path) -> None:
    """A file of some megabytes must not fill the memory of the machine that looks at it."""
    path = spoiled(name, sound, tmp_path)
    before = peak_bytes(reset=True)

    assert main(["verify", str(path)]) == BAD_DATA

    assert peak_bytes() - before < MAX_BYTES


def peak_bytes(*, reset: bool = False) -> int:
    """The most memory that this process has held since the last reset."""
    if reset:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError as error:
            pytest.skip(f"the peak of memory cannot be measured here: {error}")
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return 1024 * int(found[1])


def test_hub_cache_is_read(sound: dict[str, Path], tmp_path: Path, refusal: Refusal) -> None:
    """There every file is a link out of the directory, to `blobs` of the same repository."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(sound["columns"].iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")

    assert [refusal(reader, snapshot)[0] for reader in ALL] == [0] * len(ALL)


def test_hostile_chat_template_stays_in_its_sandbox(sound: dict[str, Path], tmp_path: Path) -> None:
    """A template is code of the checkpoint's author; only transformers' sandbox may run it."""
    from jinja2.exceptions import SecurityError
    from transformers import AutoTokenizer

    path = Path(shutil.copytree(sound["columns"], tmp_path / "model"))
    (path / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)

    with pytest.raises(SecurityError):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
