"""A checkpoint of several files, from one of a single file."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from squeeze10_kernels.checkpoint import INDEX_NAME, SINGLE_NAME


def sharded(path: Path) -> dict[str, str]:
    """Replace the single file by two shards with an index; the index's weight_map."""
    loaded = load_file(path / SINGLE_NAME)
    (path / SINGLE_NAME).unlink()
    weight_map = {name: f"model-0000{1 + place % 2}-of-00002.safetensors" for place, name in enumerate(sorted(loaded))}
    for shard in set(weight_map.values()):
        save_file({name: loaded[name] for name in loaded if weight_map[name] == shard}, path / shard)
    write_index(path, weight_map)
    return weight_map


def write_index(path: Path, weight_map: object) -> None:
    """The index of the shards."""
    (path / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
