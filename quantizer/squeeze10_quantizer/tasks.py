"""Zero-shot tasks under a model: lm-eval's own definitions and scoring, over local JSON lines and without a network.

The model is one in memory, or one that a running OpenAI endpoint serves.

A local row holds a finished prompt. It is taken apart into a row of the task's data set, so that prompt, choices and
metrics come from the definition in lm-eval, of which only the place of the data differs. lm-eval is imported when
it is needed; it is the extra `eval`.
"""

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from squeeze10_kernels import BadInput


def arc_row(parts: dict[str, str], choices: list[str], gold: int) -> dict[str, Any]:
    """A row of `allenai/ai2_arc`; its choices are lettered here, whatever they were."""
    if len(choices) > len(ascii_uppercase):
        raise ValueError(f"there are more than {len(ascii_uppercase)} choices")
    labels = list(ascii_uppercase[: len(choices)])
    return {**parts, "choices": {"text": choices, "label": labels}, "answerKey": labels[gold]}


def boolq_row(parts: dict[str, str], choices: list[str], gold: int) -> dict[str, Any]:
    """A row of `aps/super_glue`, whose prompt in lm-eval has no word "Passage:" before the passage."""
    if choices != ["no", "yes"]:
        raise ValueError('choices must be ["no", "yes"]')
    return {**parts, "label": gold}


def winogrande_row(parts: dict[str, str], choices: list[str], gold: int) -> dict[str, Any]:
    """A row of `allenai/winogrande`; lm-eval puts an option where `_` is, so options may hold what precedes it."""
    if len(choices) != 2:
        raise ValueError("context_options must be two")
    sentence = f"_ {parts['continuation']}"
    return {"sentence": sentence, "option1": choices[0], "option2": choices[1], "answer": str(gold + 1)}


@dataclass(frozen=True, slots=True)
class LocalTask:
    """A task of lm-eval, and how a local row becomes one of its data set.

    Attributes:
        definition: lm-eval's YAML, below its folder `tasks`.
        row: Makes the row of the parts of the text, the choices and the index of the right one.
        parts: What the text reads, with names for its parts.
        text: Name of the field that holds it.
        choices: Name of the field with the choices.
    """

    definition: str
    row: Callable[[dict[str, str], list[str], int], dict[str, Any]]
    parts: str
    text: str = "query"
    choices: str = "choices"


ARC: Final = r"Question: (?P<question>.+)"
TASKS: Final = {
    "arc_easy": LocalTask("arc/arc_easy.yaml", arc_row, ARC),
    "arc_challenge": LocalTask("arc/arc_challenge.yaml", arc_row, ARC),
    "boolq": LocalTask(
        "super_glue/boolq/default.yaml", boolq_row, r"Passage: (?P<passage>.+)\nQuestion: (?P<question>.+)\?"
    ),
    "winogrande": LocalTask(
        "winogrande/default.yaml", winogrande_row, r"(?P<continuation>.+)", "continuation", "context_options"
    ),
}
"""By lm-eval's names; each reads the file NAME.jsonl."""


def load_tasks(names: list[str], folder: Path) -> dict[str, Any]:
    """lm-eval's tasks by name, in their order, over the rows in `folder`; no model is needed yet."""
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise BadInput(f"--tasks must name some of {', '.join(TASKS)}; got {', '.join(map(repr, unknown))}.")
    rows = {name: read_rows(folder / f"{name}.jsonl", TASKS[name]) for name in names}
    try:
        import lm_eval.models.huggingface  # noqa: F401  # now, so that what it lacks shows before a model is loaded
    except ImportError as error:
        raise BadInput(f"--tasks needs lm-eval ({error}); run: pip install 'squeeze10-vllm[eval]'.") from error
    with without_warnings():
        return {name: load_task(TASKS[name], rows[name]) for name in names}


def read_rows(path: Path, task: LocalTask) -> list[dict[str, Any]]:
    """Rows of the task's data set; blank lines are skipped."""
    if not path.is_file():
        raise BadInput(f"The task's file {path} does not exist; --task-data must be the folder that holds it.")
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            if line.strip():
                rows.append(read_row(json.loads(line), task))
        except ValueError as error:
            raise BadInput(f"{path} must hold an item in every line, but in line {number}: {error}.") from error
    if len(rows) < 2:
        raise BadInput(f"{path} must hold at least 2 items; it has {len(rows)}.")
    return rows


def read_row(item: Any, task: LocalTask) -> dict[str, Any]:
    """A row of the task's data set.

    Raises:
        ValueError: The item is not what `task` says.
    """
    if not isinstance(item, dict):
        raise ValueError("there is no JSON object")
    text, choices, gold = item.get(task.text), item.get(task.choices), item.get("gold")
    parts = re.fullmatch(task.parts, text, re.DOTALL) if isinstance(text, str) else None
    if parts is None:
        raise ValueError(f"{task.text} must be a string like the expression {task.parts!r}")
    if not (isinstance(choices, list) and choices and all(isinstance(each, str) and each for each in choices)):
        raise ValueError(f"{task.choices} must be a list of strings, none of them empty")
    if not (type(gold) is int and gold in range(len(choices))):  # true and false are integers to Python
        raise ValueError(f"gold must be an index into {task.choices}")
    return task.row(parts.groupdict(), choices, gold)


def load_task(task: LocalTask, rows: list[dict[str, Any]]) -> Any:
    """lm-eval's task as it defines it, but for its data: `rows` are the test split, and there is no other."""
    from datasets import Dataset
    from lm_eval import tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    definition = load_yaml(Path(tasks.__file__).parent / task.definition)
    splits = {"training_split": None, "validation_split": None, "test_split": "test"}
    data = {"custom_dataset": lambda **_: {"test": Dataset.from_list(rows)}, "num_fewshot": 0}
    return ConfigurableTask(config=definition | splits | data)


def evaluate_tasks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: dict[str, Any], batch: int
) -> dict[str, dict[str, float | int]]:
    """Zero-shot accuracy of every task of `load_tasks`, `batch` choices at once; probabilities are in fp32.

    Returns:
        By task: `acc`, `acc_norm` (log-probabilities over the choices' lengths in letters) if the task defines it,
        the standard errors `acc_stderr` and `acc_norm_stderr`, and `items`, their number.
    """
    from lm_eval.models.huggingface import HFLM

    with without_warnings():
        scorer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, softmax_dtype=torch.float32)
    return accuracies(scorer, tasks)


def evaluate_endpoint(
    url: str, served_model: str, tokenizer: Path, tasks: dict[str, Any], batch: int
) -> dict[str, dict[str, float | int]]:
    """The same of a model that is served, by the log-probabilities that the server gives of prompts.

    Tokens are made here, as for a model in memory, and none is cut off: the server refuses what is too long for it.

    Args:
        url: Base of an OpenAI API, as `http://localhost:8000/v1`; the environment may hold its OPENAI_API_KEY.
        served_model: The name under which it serves the model.
        tokenizer: The model's directory.

    Raises:
        BadInput: The endpoint refuses the model, or gives no log-probabilities of a prompt.
        OSError: It cannot be reached, or it fails.
    """
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    with without_warnings():
        try:
            scorer = LocalCompletionsAPI(
                base_url=f"{url.rstrip('/')}/completions",
                model=served_model,
                tokenizer=str(tokenizer),
                tokenizer_backend="huggingface",
                add_bos_token=True,  # where the tokenizer has one, as lm-eval does for a model in memory
                max_length=sys.maxsize,
                batch_size=batch,
            )
        except ModuleNotFoundError as error:
            raise BadInput(
                "--endpoint needs lm-eval's packages for APIs (aiohttp, requests, tenacity); run: "
                "pip install 'squeeze10-vllm[eval]'."
            ) from error
        check_endpoint(scorer, url)
    return accuracies(scorer, tasks)


def check_endpoint(scorer: Any, url: str) -> None:
    """Raise `BadInput` unless a prompt comes back with a log-probability of every token.

    A server that does not echo it gives one of the new token alone, and every choice would have the same sum, 0.
    """
    from requests import HTTPError

    prompt = scorer.tok_encode("The capital of France is Paris.")
    try:
        reply = scorer.model_call([prompt], generate=False)
    except HTTPError as error:
        said = " ".join(error.response.text.split())[:200] if error.response is not None else str(error)
        raise BadInput(f"{url} must complete prompts for the model {scorer.model!r}; it says: {said}.") from error
    try:
        given = len(reply["choices"][0]["logprobs"]["token_logprobs"])
        scorer.parse_logprobs(reply, ctxlens=[1])
    except (AttributeError, LookupError, TypeError, ValueError):
        given = 0
    if given != len(prompt) + 1:
        raise BadInput(
            f"{url} must echo a prompt with its log-probabilities, as vLLM does: for {len(prompt)} tokens and a new "
            f"one it gave {given}; serve the model with vLLM."
        )


def accuracies(scorer: Any, tasks: dict[str, Any]) -> dict[str, dict[str, float | int]]:
    """What `evaluate_tasks` returns, by a model of lm-eval."""
    from lm_eval.evaluator import evaluate

    measured = evaluate(scorer, {"tasks": tasks}, log_samples=False)["results"]
    results = {}
    for name, task in tasks.items():
        # lm-eval's keys are METRIC,FILTER; these tasks have no filter
        metrics = {key.removesuffix(",none"): value for key, value in measured[name].items() if key.endswith(",none")}
        results[name] = {**metrics, "items": len(task.eval_docs)}
    return results


@contextmanager
def without_warnings() -> Iterator[None]:
    """While lm-eval prepares, it warns of what is meant here: a model that is loaded already, data from elsewhere."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
