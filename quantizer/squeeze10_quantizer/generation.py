"""Text that a model writes itself: more to distill on than there is at hand, and in its own distribution."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Final

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from squeeze10_kernels import BadInput
from squeeze10_quantizer.calibration import load_calibration
from squeeze10_quantizer.directory import refuse_existing, replaced
from squeeze10_quantizer.loading import load_model

PROMPT_TOKENS: Final = 24
"""Of real text, with which a generated text begins."""
QUESTION_TOKENS: Final = 64
"""Of what a user says in a generated chat, at most."""
USER_WORDS: Final = "USERWORDS"
OPENERS: Final = ("", "What is", "", "Who", "", "Where", "", "When", "", "Why", "", "How", "", "Which", "", "Explain")
"""How a user begins; left alone, a small model seldom lets him ask a plain question."""


@dataclass(frozen=True, slots=True)
class Writer:
    """A model that samples from its own probabilities, sharpened where the temperature is below 1."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    temperature: float
    openers: Iterator[str] = field(default_factory=lambda: cycle(OPENERS))

    def complete(self, prompts: list[str], longest: int) -> list[list[int]]:
        """Token ids of each prompt and what comes after it, to its end or `longest` tokens after the prompts."""
        tokens = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        tokens = tokens.to(self.model.device)
        width, ends = tokens["input_ids"].shape[1], self.ends()
        out: torch.Tensor = self.model.generate(  # type: ignore[operator]  # transformers hides that it is a method
            **tokens, max_new_tokens=longest, do_sample=True, temperature=self.temperature, top_k=0, top_p=1.0,
            eos_token_id=sorted(ends), pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        padding = (width - tokens["attention_mask"].sum(1)).tolist()
        return [cut(row[skip:width], row[width:], ends) for row, skip in zip(out.tolist(), padding, strict=True)]

    def ends(self) -> set[int]:
        """Tokens that end a text: the tokenizer's and those of config.json, where LLaMA 3 has several."""
        more = self.model.config.eos_token_id
        several = more if isinstance(more, list) else [more]
        return {token for token in (self.tokenizer.eos_token_id, *several) if token is not None}

    def spoken(self, ids: list[int]) -> str:
        """A text without the tokens that end it."""
        ends = self.ends()
        last = next((place for place in reversed(range(len(ids))) if ids[place] not in ends), -1)
        return str(self.tokenizer.decode(ids[: last + 1]))

    def questions(self, count: int) -> list[str]:
        """What the model lets a user say, as prompts for its answers (the idea of Magpie, arXiv 2406.08464)."""
        template = str(self.tokenizer.apply_chat_template(user(USER_WORDS), tokenize=False))
        begin, found, _ = template.partition(USER_WORDS)
        if not found:
            raise BadInput("The model's chat template does not repeat what a user says; use --no-chats.")
        # a space before the words may become part of their first token
        before = str(self.tokenizer.decode(self.tokenizer(begin.rstrip(), add_special_tokens=False)["input_ids"]))
        texts = self.complete([begin + words for words in islice(self.openers, count)], QUESTION_TOKENS)
        words = (self.spoken(ids).removeprefix(before).strip() for ids in texts)
        chats = [user(part) for part in words if part]
        apply = self.tokenizer.apply_chat_template
        return [str(apply(chat, tokenize=False, add_generation_prompt=True)) for chat in chats]


def generate_text(
    path: Path,
    out: Path,
    text: Sequence[Path],
    *,
    tokens: int,
    context: int,
    batch: int,
    chats: bool,
    temperature: float,
    seed: int,
    device: torch.device,
) -> int:
    """Write texts to the JSON lines `out`, which `squeeze10 quantize` reads.

    A text goes on from a few words of `text`. Where the model chats, half of the texts are chats instead, of which it
    writes both sides.

    Args:
        path: Model directory.
        text: Files as for calibration; none: the bundled text.
        tokens: How many to write at least.
        context: Of each text after its prompt, at most.
        batch: Texts that are written at once.
        chats: Whether to write chats, if the model has a chat template.
        temperature: 1 samples the model's own probabilities.

    Returns:
        Tokens written.

    Raises:
        BadInput: `out` exists, or a size, the text or the chat template cannot be used.
    """
    for name, value in (("--tokens", tokens), ("--context", context), ("--batch", batch)):
        if value < 1:
            raise BadInput(f"{name} must be at least 1; got {value}.")
    if not temperature > 0:
        raise BadInput(f"--temperature must be above 0; got {temperature}.")
    refuse_existing(out)
    model = load_model(path, torch.bfloat16 if device.type == "cuda" else torch.float32, device)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    words = cycle(openings(text, tokenizer, seed))
    writer = Writer(model, tokenizer, temperature)
    torch.manual_seed(seed)
    written, asked = 0, batch // 2 if chats and tokenizer.chat_template else 0
    with (
        replaced(out) as unfinished,
        unfinished.open("w", encoding="utf-8") as file,
        tqdm(total=tokens, unit="token", desc="generate", unit_scale=True, dynamic_ncols=True) as progress,
    ):
        while written < tokens:
            prompts = [*islice(words, batch - asked), *(writer.questions(asked) if asked else [])]
            texts = writer.complete(prompts, context)
            file.writelines(lines(texts, tokenizer))
            progress.update(sum(map(len, texts)))
            written += sum(map(len, texts))
    return written


def openings(text: Sequence[Path], tokenizer: PreTrainedTokenizerBase, seed: int) -> list[str]:
    """All beginnings that the text offers, in an order of the seed's."""
    windows = load_calibration(text, tokenizer, samples=None, context=PROMPT_TOKENS, seed=seed).tokens
    first = leading(tokenizer)
    words = [first + str(tokenizer.decode(window, skip_special_tokens=True)) for window in windows]
    random.Random(seed).shuffle(words)
    return words


def lines(texts: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """JSON lines, without the token that the tokenizer will put before them again."""
    first = leading(tokenizer)
    for ids in texts:
        yield json.dumps({"text": str(tokenizer.decode(ids)).removeprefix(first)}, ensure_ascii=False) + "\n"


def leading(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the tokenizer puts before every text: LLaMA's `<s>`; empty if nothing."""
    ids: list[int] = tokenizer("")["input_ids"]
    return str(tokenizer.bos_token) if ids[:1] == [tokenizer.bos_token_id] else ""


def user(words: str) -> list[dict[str, str]]:
    """A chat of one message."""
    return [{"role": "user", "content": words}]


def cut(prompt: list[int], answer: list[int], ends: set[int]) -> list[int]:
    """A text without what comes after its end."""
    last = next((place for place, token in enumerate(answer) if token in ends), len(answer))
    return prompt + answer[: last + 1]
