"""Faults of the directory: files cut short, missing, elsewhere, of another kind, or of another publisher."""

import os
import shutil
from pathlib import Path

from faults.spoiling import COMMANDS, SINGLE_NAME, add, content, replaced, shards
from safetensors.torch import load_file, save_file
from shards import sharded, write_index

from squeeze10_kernels.checkpoint import INDEX_NAME

DAMAGED = "is damaged or cut short"
NO_SHARD = "is no shard of the checkpoint"
FIRST = "model-00001-of-00002.safetensors"


def cut(kept: int):
    """Keep the first bytes of the weights, or all but some of the last."""

    def spoil(path: Path) -> None:
        data = (path / SINGLE_NAME).read_bytes()
        (path / SINGLE_NAME).write_bytes(data[:kept])

    return spoil


for place, kept in {"empty": 0, "in_length": 7, "no_header": 8, "in_header": 200, "last_byte": -1}.items():
    add(f"cut_short_{place}", "A1", cut(kept), DAMAGED)


def outside(name: str, path: Path) -> Path:
    """A readable file of another directory."""
    other = path.parent / f"{path.name}-other"
    other.mkdir(exist_ok=True)
    return Path(shutil.copy(path / name, other / name))


def link_out(name: str):
    """Put a link to the same file elsewhere in a file's place."""

    def spoil(path: Path) -> None:
        target = outside(name, path)
        (path / name).unlink()
        (path / name).symlink_to(target)

    return spoil


def instead(name: str, make):
    """Put something else in a file's place."""

    def spoil(path: Path) -> None:
        (path / name).unlink()
        make(path / name)

    return spoil


def point_index_at(name: str):
    """Let the index name one file for all tensors."""
    return shards(lambda path, weight_map: write_index(path, dict.fromkeys(weight_map, name)))


def duplicate(path: Path, weight_map: dict[str, str]) -> None:
    """Both shards hold one tensor."""
    first, second = (load_file(path / shard) for shard in sorted(set(weight_map.values())))
    name = next(iter(first))
    save_file(second | {name: first[name]}, path / max(weight_map.values()))


def swap_places(path: Path, weight_map: dict[str, str]) -> None:
    """The index says of two tensors that each is where the other is."""
    a = next(name for name, shard in weight_map.items() if shard == FIRST)
    b = next(name for name, shard in weight_map.items() if shard != FIRST)
    write_index(path, weight_map | {a: weight_map[b], b: weight_map[a]})


add("shard_missing", "A2", shards(lambda path, _: (path / FIRST).unlink()), "which is no file of")
add("index_names_absent_tensor", "A2", shards(lambda p, m: write_index(p, m | {"x": FIRST})), "disagree on where")
add("index_lacks_tensor", "A2", shards(lambda p, m: write_index(p, dict(list(m.items())[1:]))), "disagree on where")
add("index_swaps_tensors", "A2", shards(swap_places), "disagree on where")
add("index_null", "A2", lambda path: write_index(path, None), "must map tensor names to file names")
add("index_list", "A2", lambda path: write_index(path, []), "must map tensor names to file names")
add("index_empty", "A2", lambda path: write_index(path, {}), NO_SHARD)
add("index_number", "A2", lambda path: write_index(path, {"a": 1}), "must map tensor names to file names")
add("index_broken_json", "A2", content(INDEX_NAME, b'{"weight_map": {'), "must hold JSON")
add("tensor_in_two_shards", "A5", shards(duplicate), "remove the stale file")
# vLLM takes a directory without weights for a dummy, and then fails by itself
add("no_weights", "A2", lambda path: (path / SINGLE_NAME).unlink(), "has neither", readers=COMMANDS)
add("no_config", "A2", lambda path: (path / "config.json").unlink(), "has no config.json")

for label, name in {
    "parent": "../other.safetensors", "absolute": "/etc/passwd", "dots": "..", "subfolder": "sub/x.safetensors",
    "nothing": "", "nul": "a\0b.safetensors", "surrogate": "\ud800.safetensors", "newline": "a\nb", "long": "a" * 5000,
}.items():  # fmt: skip
    add(f"index_names_{label}", "A3", point_index_at(name), "which is no file of")
for label, name in {"weights": SINGLE_NAME, "config": "config.json", "tokenizer": "tokenizer.json"}.items():
    add(f"{label}_link_out", "A3", link_out(name), "is a link that leaves the directory")
add("shard_link_out", "A3", lambda path: (sharded(path), link_out(FIRST)(path)), "is a link that leaves the directory")
for label, name in {"weights": SINGLE_NAME, "tokenizer": "tokenizer.json", "sums": "SHA256SUMS"}.items():
    add(f"{label}_pipe", "A3", instead(name, os.mkfifo), "must be a regular file", sealed=False)
add("config_pipe", "A3", instead("config.json", os.mkfifo), "")  # `eval` says that there is none
add("link_to_itself", "A3", instead("tokenizer.json", lambda f: f.symlink_to(f.name)), "must be a regular file")
add("link_to_device", "A3", instead("tokenizer.json", lambda f: f.symlink_to("/dev/zero")), "must be a regular file")
add("weights_directory", "A3", instead(SINGLE_NAME, Path.mkdir), "has neither")
add("config_directory", "A3", instead("config.json", Path.mkdir), "has no config.json")

add("pickle_instead", "A3", lambda p: (p / SINGLE_NAME).rename(p / "pytorch_model.bin"), "which are not read because")
add("pickle_beside", "A3", content("pytorch_model.bin", b"\x80\x04."), NO_SHARD)
add("weights_beside", "A5", lambda p: shutil.copy(p / SINGLE_NAME, p / "z.safetensors"), NO_SHARD)

only_verify = {"readers": ("verify",), "sealed": False}
add("sums_missing", "A16", lambda path: (path / "SHA256SUMS").unlink(), "has no SHA256SUMS", **only_verify)
add("sums_empty", "A16", content("SHA256SUMS", b""), "must hold lines of a sum", **only_verify)
add("sums_binary", "A16", content("SHA256SUMS", b"\xff\xfe\x00" * 9), "must hold lines of a sum", **only_verify)
add("sums_huge", "A16", content("SHA256SUMS", b"0" * 2**21), "at most 1048576 bytes", **only_verify)
add("sums_name_outside", "A16", replaced("SHA256SUMS", b"  config.json", b"  ../config.json"), "missing", **only_verify)
add("sums_lack_a_file", "A16", content("extra.json", b"{}"), "has no sum in", **only_verify)
add("sums_lack_weights", "A16", lambda path: drop_line(path, SINGLE_NAME), "has no sum in", **only_verify)
add("tokenizer_changed", "A16", replaced("tokenizer.json", b"{", b"{ "), "differs from its sum", **only_verify)
add("config_changed", "A16", replaced("config.json", b"10000.0", b"10001.0"), "differs from its sum", **only_verify)


def drop_line(path: Path, name: str) -> None:
    """Take a file off the list of sums."""
    sums = path / "SHA256SUMS"
    sums.write_text("".join(f"{line}\n" for line in sums.read_text().splitlines() if not line.endswith(f"  {name}")))
