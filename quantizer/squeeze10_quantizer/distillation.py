"""Tuning a whole quantized model at once, towards the original model's next-token probabilities."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, Final

import torch
from torch import nn
from transformers import PreTrainedModel

from squeeze10_quantizer.decoder import Rotary, layer_outputs
from squeeze10_quantizer.latent import TrainedLinear
from squeeze10_quantizer.replay import Replayed
from squeeze10_quantizer.training import BATCH_TOKENS, Rates, make_optimizer, orders, parameters_of, set_rates

RATES: Final = Rates(latent=3e-3, scales=1e-3)
"""The better of two on held-out text, by little (LOG.md, 2026-11-23)."""
LOGIT_TOKENS: Final = 4096
"""Tokens whose logits over the whole vocabulary are held at a time."""
HELD_OUT: Final = 64
"""One window in so many is not trained on, but says how far the student has come."""
MAX_GRADIENT: Final = 1.0


@dataclass(frozen=True, slots=True)
class Lesson:
    """Who learns from whom, and what they read.

    Attributes:
        student: Its decoder linears are `TrainedLinear`.
        teacher: The original model.
        windows: Text, `[n, context]` token ids on their device.
    """

    student: PreTrainedModel
    teacher: PreTrainedModel
    windows: torch.Tensor

    @property
    def batch(self) -> int:
        """Windows of a step."""
        return max(1, min(BATCH_TOKENS // self.windows.shape[1], len(self.windows) // 2))

    @property
    def held_out(self) -> int:
        """The last windows, which are not trained on: whole batches, for which nothing is compiled anew."""
        return self.batch * max(1, len(self.windows) // (HELD_OUT * self.batch))

    def linears(self) -> list[TrainedLinear]:
        """What is trained."""
        return [module for module in self.student.modules() if isinstance(module, TrainedLinear)]


class Distillation:
    """A run of Adam that can be saved and taken up.

    Attributes:
        step: Steps done.
        steps: Steps in all.
    """

    def __init__(self, lesson: Lesson, *, tokens: int, seed: int, checkpointing: bool = False) -> None:
        """Prepare it.

        Args:
            tokens: How many are trained on; the windows are read as often as that asks for.
            checkpointing: Keep the inputs of the student's layers only: slower, in less memory.
        """
        self.lesson = lesson
        self.seed = seed
        self.step = 0
        self.steps = max(1, tokens // (lesson.batch * lesson.windows.shape[1]))
        self.optimizer = make_optimizer(lesson.linears(), RATES)
        self.parameters = parameters_of(self.optimizer)
        self.rotary = rotary_of(lesson.student, lesson.windows.shape[1])
        if checkpointing:
            # nothing is random in a layer, and its state cannot be read while a graph is captured
            lesson.student.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
            lesson.student.train()
        self.update: Callable[[torch.Tensor], torch.Tensor] = self.plain_update
        if lesson.windows.is_cuda:
            compile_layers(lesson.student)
            compile_layers(lesson.teacher)
            self.update = Replayed(self.plain_update, lesson.windows.device)

    def train(self, steps: int) -> float:
        """Go on for so many steps or to the end; the divergence of the last one, in nats a token."""
        lesson, loss = self.lesson, torch.tensor(torch.nan)
        choices = orders(len(lesson.windows) - lesson.held_out, lesson.batch, self.seed)
        for chosen in islice(choices, self.step, min(self.step + steps, self.steps)):
            set_rates(self.optimizer, self.step, self.steps)
            loss = self.update(lesson.windows[chosen.to(lesson.windows.device)])
            self.step += 1
        return float(loss)

    def plain_update(self, ids: torch.Tensor) -> torch.Tensor:
        """One step of Adam on `ids`, `[batch, context]`; the divergence before it."""
        loss = divergence(self.lesson.student, self.lesson.teacher, ids, self.rotary)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def end(self) -> None:
        """Free what only training needs."""
        self.update = self.plain_update
        if self.lesson.windows.is_cuda:
            torch.cuda.empty_cache()

    def held_out_divergence(self) -> float:
        """Mean KL(teacher || student) over the held-out windows, in nats a token."""
        lesson = self.lesson
        parts = lesson.windows[-lesson.held_out :].split(lesson.batch)
        losses = [divergence(lesson.student, lesson.teacher, part, self.rotary).detach() for part in parts]
        return float(torch.stack(losses).mean())

    def state(self) -> dict[str, torch.Tensor]:
        """What `load` needs besides a lesson made the same way."""
        tensors = {"step": torch.tensor(self.step)}
        for i, parameter in enumerate(self.parameters):
            adam = self.optimizer.state[parameter]
            tensors |= {f"{i}.value": parameter.detach()}
            tensors |= {f"{i}.{name}": adam[name] for name in ("exp_avg", "exp_avg_sq") if name in adam}
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take up a saved run."""
        self.step = int(tensors["step"])
        for i, parameter in enumerate(self.parameters):
            parameter.copy_(tensors[f"{i}.value"])
            moments = {
                name: tensors[f"{i}.{name}"].to(parameter.device)
                for name in ("exp_avg", "exp_avg_sq")
                if f"{i}.{name}" in tensors
            }
            if moments:
                step = torch.tensor(float(self.step), device=parameter.device)
                self.optimizer.state[parameter] = {"step": step, **moments}


def compile_layers(model: PreTrainedModel) -> None:
    """Fuse the decoder layers' operations; compiled once for all layers."""
    for layer in model.model.layers:
        layer.compile(dynamic=False)


def rotary_of(model: PreTrainedModel, context: int) -> Rotary:
    """Cosines and sines of the first positions; made once, since some kinds wait for the GPU."""
    embeddings: torch.Tensor = model.model.embed_tokens.weight
    positions = torch.arange(context, device=embeddings.device)[None]
    rotary: Rotary = model.model.rotary_emb(embeddings, positions)
    return rotary


def divergence(student: PreTrainedModel, teacher: PreTrainedModel, ids: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Mean over the tokens of KL(teacher || student), in nats."""
    with torch.no_grad():
        wanted = final_states(teacher, teacher.model.embed_tokens(ids), rotary)
        embeddings = student.model.embed_tokens(ids)
    # with a gradient the first layer runs as it was compiled for the others
    hidden = final_states(student, embeddings.requires_grad_(), rotary)
    heads = student.lm_head.weight, teacher.lm_head.weight
    loss: torch.Tensor = HeadDivergence.apply(hidden.flatten(0, 1), wanted.flatten(0, 1), *heads)  # type: ignore[no-untyped-call]
    return loss


def final_states(model: PreTrainedModel, hidden: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """What the lm_head reads, of embeddings `[batch, context, hidden]`; without the masks, which wait for the GPU."""
    for layer in model.model.layers:
        hidden = layer_outputs(layer, hidden, rotary)
    states: torch.Tensor = model.model.norm(hidden)
    return states


class HeadDivergence(torch.autograd.Function):
    """KL of the logits of two hidden states, each under its head; the gradient is made along, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, wanted: torch.Tensor, head: torch.Tensor, wanted_head: torch.Tensor
    ) -> torch.Tensor:
        """`[T, hidden]` twice, `[vocabulary, hidden]` twice to a scalar fp32."""
        part = compiled_divergence() if hidden.is_cuda else head_divergence
        pairs = zip(hidden.detach().split(LOGIT_TOKENS), wanted.split(LOGIT_TOKENS), strict=True)
        losses, gradients = zip(*(part(h, w, head, wanted_head) for h, w in pairs), strict=True)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.stack(losses).sum() / len(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """The gradient of `hidden`."""
        (saved,) = ctx.saved_tensors
        return saved * (gradient / len(saved)), None, None, None


def head_divergence(
    hidden: torch.Tensor, wanted: torch.Tensor, head: torch.Tensor, wanted_head: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of KL over tokens, and its gradient with respect to `hidden`."""
    logs = nn.functional.linear(hidden, head).float().log_softmax(-1)
    wanted_logs = nn.functional.linear(wanted, wanted_head).float().log_softmax(-1)
    probabilities = wanted_logs.exp()
    loss = (probabilities * (wanted_logs - logs)).sum()
    return loss, (logs.exp() - probabilities).to(hidden.dtype) @ head


@cache
def compiled_divergence() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """`head_divergence`, fused."""
    return torch.compile(head_divergence, dynamic=False)
