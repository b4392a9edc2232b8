"""Tuning one decoder layer: its quantized linears together, so that its outputs become the original ones."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Final, TypeVar

import torch
from torch import nn

from squeeze10_kernels import BadInput, QuantizedLinear
from squeeze10_kernels.format import SALIENT_BITS
from squeeze10_kernels.llama import INPUT_GROUPS
from squeeze10_quantizer.decoder import Decoder, Rotary, layer_outputs
from squeeze10_quantizer.hidden_states import finite_samples
from squeeze10_quantizer.latent import CodedLinear, LatentLinear, TrainedLinear
from squeeze10_quantizer.recipe import Recipe
from squeeze10_quantizer.replay import Replayed
from squeeze10_quantizer.training import BATCH_TOKENS, Rates, make_optimizer, orders, parameters_of, set_rates

Trained = TypeVar("Trained", bound=TrainedLinear)
RATES: Final = Rates(latent=3e-2, scales=3e-3)
"""The best of a screening on held-out text (LOG.md, 2026-11-23)."""
HELD_OUT: Final = 16
"""One sample in so many is not trained on, but says whether training helped."""
CHECKS: Final = 8
"""So many times in a layer's training the held-out samples are asked, and the best state is kept."""
PATIENCE: Final = 4
"""Training ends when so many checks in a row were worse than the best before them.

With two it ended in a quarter of SmolLM2's layers, where a few tokens with large outputs make the checks noisy while
the rates are high (LOG.md, 2026-11-25).
"""


@dataclass(frozen=True, slots=True)
class BlockLoss:
    """`Σ |Δy|² / Σ |y|²` over held-out tokens, with y the outputs of a decoder layer.

    Attributes:
        steps: Done when the layer was at its best, the state that is kept; 0 if training did not help.
    """

    before: float
    after: float
    steps: int


@dataclass(frozen=True, slots=True)
class BlockTask:
    """What a decoder layer reads in the quantized model and gives in the original one.

    Attributes:
        inputs: `[samples, context, hidden]` fp32, on the layer's device or on the host.
        targets: Likewise.
        rotary: Cosines and sines, `[1, context, head_dim]`, on the layer's device.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    rotary: Rotary

    @property
    def held_out(self) -> int:
        """The first samples, which are not trained on."""
        return max(1, len(self.inputs) // HELD_OUT)

    @property
    def batch(self) -> int:
        """Samples of a step."""
        return max(1, min(BATCH_TOKENS // self.inputs.shape[1], len(self.inputs) - self.held_out))

    @property
    def device(self) -> torch.device:
        """The layer's."""
        return self.rotary[0].device

    def pairs(self, rows: torch.Tensor) -> torch.Tensor:
        """Inputs and targets of some samples, `[2, rows, context, hidden]` on the layer's device."""
        rows = rows.to(self.inputs.device)
        return torch.stack((self.inputs[rows], self.targets[rows])).to(self.device)


def tune_layer(
    decoder: Decoder,
    layer: nn.Module,
    start: dict[str, QuantizedLinear],
    inputs: torch.Tensor,
    targets: torch.Tensor,
    recipe: Recipe,
    salient_bits: int = SALIENT_BITS,
) -> tuple[dict[str, LatentLinear], BlockLoss]:
    """Tune the quantized linears `start` of a decoder layer, which itself stays as it is."""
    task = BlockTask(*finite_pairs(inputs, targets), decoder.rotary_of(inputs.shape[1]))
    with latent_linears(layer, start, salient_bits) as linears:
        loss = tune_block(layer, list(linears.values()), task, steps=recipe.tune_steps, seed=recipe.seed)
    return linears, loss


def finite_pairs(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The samples that are finite before and after the layer; themselves if all are."""
    sound = finite_samples(inputs) & finite_samples(targets)
    if sound.sum() < 2:
        raise BadInput(f"tuning must have 2 samples without NaN and infinity, not {sound.sum()}; give other text.")
    return (inputs, targets) if sound.all() else (inputs[sound], targets[sound])


@contextmanager
def latent_linears(
    layer: nn.Module, start: dict[str, QuantizedLinear], salient_bits: int
) -> Iterator[dict[str, LatentLinear]]:
    """Put a `LatentLinear` in the place of every linear of a decoder layer, for a while."""
    original = {name: layer.get_submodule(name) for name in start}
    linears = make_latent(layer, start, salient_bits)
    try:
        yield linears
    finally:
        for name, module in original.items():
            layer.set_submodule(name, module)


def make_latent(
    layer: nn.Module, start: dict[str, QuantizedLinear], salient_bits: int = SALIENT_BITS
) -> dict[str, LatentLinear]:
    """Put a `LatentLinear` in the place of every linear of a decoder layer."""

    def make(name: str, linear: nn.Linear, factors: nn.Parameter) -> LatentLinear:
        return LatentLinear(start[name], linear.weight.detach(), linear.bias, factors, salient_bits)

    return put_trained(layer, start, make)


def make_coded(layer: nn.Module, start: dict[str, QuantizedLinear]) -> dict[str, CodedLinear]:
    """Put a `CodedLinear` in the place of every linear of a decoder layer."""
    return put_trained(layer, start, lambda name, linear, factors: CodedLinear(start[name], linear.bias, factors))


def put_trained(
    layer: nn.Module, start: dict[str, QuantizedLinear], make: Callable[[str, nn.Linear, nn.Parameter], Trained]
) -> dict[str, Trained]:
    """Replace every linear of a decoder layer; those of one input share the factors of its channels."""
    linears = {}
    for group in INPUT_GROUPS:
        scales = start[group[0]].channel_scales
        factors = nn.Parameter(torch.ones(len(scales), device=scales.device))
        for name in group:
            linear = layer.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            linears[name] = make(name, linear, factors)
            layer.set_submodule(name, linears[name])
    return linears


def tune_block(layer: nn.Module, linears: list[LatentLinear], task: BlockTask, *, steps: int, seed: int) -> BlockLoss:
    """Train the linears of a decoder layer, which keep the state that is the best on the held-out samples.

    Early in training, while the rates are high, a layer may be worse than at its start and end far better: only
    checks are compared when it is to be stopped.
    """
    optimizer = make_optimizer(linears, RATES)
    parameters = parameters_of(optimizer)
    kept = [p.detach().clone() for p in parameters]
    power = mean_power(task.targets[: task.held_out])
    before = best = held_out_error(layer, task) / power
    if not math.isfinite(before):
        raise BadInput("the quantized layer gives NaN or infinity where the original does not; set --tune none.")
    best_step, checked = 0, []
    for step in train(layer, optimizer, task, steps, seed):
        checked.append(held_out_error(layer, task) / power)
        if checked[-1] < best:
            best, best_step = checked[-1], step
            copy(parameters, kept)
        if not math.isfinite(checked[-1]):
            break
        if len(checked) > PATIENCE and min(checked[-PATIENCE:]) > min(checked[:-PATIENCE]):
            break
    copy(kept, parameters)
    return BlockLoss(before, best, best_step)


@torch.no_grad()
def copy(parameters: Iterable[torch.Tensor], to: Iterable[torch.Tensor]) -> None:
    """Values into others' memory."""
    for value, place in zip(parameters, to, strict=True):
        place.copy_(value)


def train(layer: nn.Module, optimizer: torch.optim.Optimizer, task: BlockTask, steps: int, seed: int) -> Iterator[int]:
    """Steps of Adam over the samples that are not held out; yields how many are done, `CHECKS` times."""
    on_gpu = task.device.type == "cuda"
    loss = compiled_loss() if on_gpu else layer_loss
    power = mean_power(task.targets)

    def plain_update(pairs: torch.Tensor) -> torch.Tensor:
        error = loss(layer, pairs[0], pairs[1], task.rotary) / power
        error.backward()
        optimizer.step()
        optimizer.zero_grad()
        return error.detach()

    update = Replayed(plain_update, task.device) if on_gpu else plain_update
    choices = orders(len(task.inputs) - task.held_out, task.batch, seed)
    checks = {steps * check // CHECKS for check in range(1, CHECKS + 1)}
    for step, chosen in enumerate(islice(choices, steps)):
        set_rates(optimizer, step, steps)
        update(task.pairs(chosen + task.held_out))
        if step + 1 in checks:
            yield step + 1


@torch.no_grad()
def held_out_error(layer: nn.Module, task: BlockTask) -> float:
    """Mean square error of a layer as it is."""
    batches = map(task.pairs, torch.arange(task.held_out).split(task.batch))
    return sum(float(layer_loss(layer, x, y, task.rotary)) * len(x) for x, y in batches) / task.held_out


def mean_power(y: torch.Tensor) -> float:
    """Mean square, summed sample by sample; 1 for states of zeros, whose error is to count as it is."""
    return sum(float(sample.square().mean()) for sample in y) / len(y) or 1.0


def layer_loss(layer: nn.Module, x: torch.Tensor, y: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Mean of `(layer(x) - y)²`."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
        out = layer_outputs(layer, x, rotary)
    return nn.functional.mse_loss(out.float(), y)


@cache
def compiled_loss() -> Callable[..., torch.Tensor]:
    """`layer_loss`, fused; compiled once for all layers of a model."""
    return torch.compile(layer_loss, dynamic=False)
