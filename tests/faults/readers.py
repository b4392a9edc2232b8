"""Everything that reads a checkpoint, as a user reaches it."""

from pathlib import Path
from typing import Any

from squeeze10_kernels import BadInput, WeightFormat
from squeeze10_quantizer.cli import BAD_DATA, main

TEXT = "The quick brown fox jumps over the lazy dog. " * 8


def command(reader: str, path: Path, place: Path) -> list[str]:
    """The words of `squeeze10` for a reader; `place` is a directory for its other files."""
    text = place / "text.txt"
    text.write_text(TEXT)
    return {
        "verify": ["verify", str(path)],
        "inspect": ["inspect", str(path), "--json"],
        "eval": ["eval", str(path), "--text", str(text), "--context", "32", "--device", "cpu"],
        "dequantize": ["dequantize", str(path), str(place / "dense")],
    }[reader]


def refusal_of(reader: str, path: Path, place: Path, capture: Any) -> tuple[int, str]:
    """Exit code and message of a reader; those of the plugin as the command line would have them."""
    if reader != "plugin":
        capture.readouterr()
        code = main(command(reader, path, place))
        return code, capture.readouterr().err
    from squeeze10_vllm.config import Squeeze10Config

    try:
        Squeeze10Config(WeightFormat()).maybe_update_config(str(path))
    except BadInput as error:
        return BAD_DATA, f"squeeze10: {error}\n"
    return 0, ""
