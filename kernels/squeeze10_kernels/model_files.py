"""The files of a model directory: regular ones, inside it, none of which names code to run."""

from pathlib import Path
from typing import Any, Final

from squeeze10_kernels.errors import BadInput

MAX_FILES: Final = 10_000
NAMES_CODE: Final = ("auto_map", "custom_pipelines")
"""Keys of config.json and tokenizer_config.json under which transformers finds Python files to import."""
PICKLED: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")
ATTENTION: Final = ("attn_implementation", "_attn_implementation")
"""Keys of config.json whose value may be a repository of compiled kernels: `owner/name`."""


def check_files(path: Path) -> None:
    """Raise `BadInput` unless `path` is a directory whose entries are regular files and directories that lie in it.

    A link may lead to another file of the directory. In a Hub cache, `snapshots/REVISION` beside `blobs`, it may
    lead to `blobs`.
    """
    if not path.is_dir():
        raise BadInput(f"{path} is not a directory; give a model directory with config.json and safetensors files.")
    root = path.resolve()
    roots = (root, root.parent.parent / "blobs") if root.parent.name == "snapshots" else (root,)
    for count, file in enumerate(path.iterdir()):
        if count == MAX_FILES:
            raise BadInput(f"{path} must hold at most {MAX_FILES} files; it has more.")
        if file.name.startswith("."):
            continue  # no reader reads it; editors leave links to nothing
        if not (file.is_file() or file.is_dir()):
            raise BadInput(f"{file} must be a regular file; it is a pipe, a device or a link to nothing.")
        if file.is_symlink() and not any(file.resolve().is_relative_to(place) for place in roots):
            raise BadInput(f"{file} is a link that leaves the directory; copy the directory with: cp -rL {path} NEW.")


def check_no_code(source: Path, config: dict[str, Any]) -> None:
    """Raise `BadInput` if a config makes its reader run code that is not installed."""
    for key in NAMES_CODE:
        if key in config:
            raise BadInput(f"{source} names code to run under {key!r}, which is never done; remove the entry.")
    for key in ATTENTION:
        if "/" in str(config.get(key)):
            raise BadInput(f"{source} names a repository of kernels under {key!r}; remove the entry.")


def check_no_other_weights(path: Path, shards: set[Path]) -> None:
    """Raise `BadInput` if a directory holds weights besides its shards, which another reader may take for them.

    vLLM without an index reads every `*.safetensors` there is.
    """
    for pattern in ("*.safetensors", *PICKLED):
        for file in path.glob(pattern):
            if file not in shards:
                raise BadInput(f"{file} holds weights but is no shard of the checkpoint; remove it.")
