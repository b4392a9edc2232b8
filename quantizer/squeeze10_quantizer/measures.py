"""What `squeeze10 eval` measures of a model and an ablation of every variant: perplexity and accuracies in tasks."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from squeeze10_quantizer.directory import sha256
from squeeze10_quantizer.perplexity import evaluate_text, read_text
from squeeze10_quantizer.tasks import evaluate_tasks, load_tasks


class Measures:
    """A text and tasks, read and checked before a model is loaded.

    Attributes:
        identity: All that decides the numbers, for the comparison on resume.
    """

    def __init__(
        self,
        text: Path | None,
        tasks: list[str],
        task_data: Path | None,
        *,
        context: int,
        max_tokens: int | None,
        batch: int,
    ) -> None:
        """Without a text there is no perplexity, without `task_data` there are no accuracies.

        Args:
            context: Tokens of the text's windows.
            max_tokens: Read of the text; None: all.
            tasks: Names of tasks with a file NAME.jsonl in `task_data`.
            batch: Choices of tasks computed at once.
        """
        self.context, self.max_tokens, self.batch = context, max_tokens, batch
        self.identity: dict[str, Any] = {}
        self.text = None if text is None else read_text(text)
        self.tasks = {} if task_data is None else load_tasks(tasks, task_data)
        if text is not None:
            window = {"context": context, "max_tokens": max_tokens}
            self.identity["text"] = {"name": text.name, "sha256": sha256(text), **window}
        if task_data is not None:
            self.identity["tasks"] = {name: sha256(task_data / f"{name}.jsonl") for name in tasks}

    def take(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """`perplexity` and `tokens` of the text, `tasks` with their accuracies."""
        found: dict[str, Any] = {}
        if self.text is not None:
            found |= evaluate_text(model, tokenizer, self.text, context=self.context, max_tokens=self.max_tokens)
        if self.tasks:
            found["tasks"] = evaluate_tasks(model, tokenizer, self.tasks, self.batch)
        return found
