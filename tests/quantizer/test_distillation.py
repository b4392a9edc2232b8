"""Distillation: what it starts from, what it reads, its loss."""

from pathlib import Path

import pytest
import torch
from random_layers import random_layer
from torch import nn

from squeeze10_kernels import QuantizedLinear
from squeeze10_quantizer import distillation, training
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.latent import LatentLinear
from squeeze10_quantizer.lesson import make_lesson
from squeeze10_quantizer.loading import load_model


def test_distillation_starts_from_the_latents_that_blocks_left(tiny_model: Path) -> None:
    """Latents made anew from the original weights would lose what the blocks learned."""
    shape = Decoder(tiny_model, torch.device("cpu")).shape
    layers = {name: random_layer(*size, 24) for name, size in shape.linears().items()}

    table = random_layer(shape.vocab, shape.hidden, shape.hidden)

    class Tuned:
        def linear(self, index: int, name: str) -> QuantizedLinear:
            return layers[name]

        def latent(self, index: int, name: str) -> torch.Tensor:
            codes = layers[name].codes.float()
            return torch.where(layers[name].salient, codes - 8, 2 * codes - 1).half() * 0.9

        def tables(self) -> dict[str, QuantizedLinear]:
            return {"model.embed_tokens": table}

    lesson = make_lesson(Decoder(tiny_model, torch.device("cpu")), Tuned(), torch.randint(0, 256, (32, 64)))

    for index, layer in enumerate(lesson.student.model.layers):
        for name in layers:
            linear = layer.get_submodule(name)
            assert torch.equal(linear.latent, Tuned().latent(index, name).float())
            assert torch.equal(linear.scales, layers[name].scales.float())


def test_what_is_held_out_is_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise learning by heart would look like learning."""
    lesson = distillation.Lesson(nn.Identity(), nn.Identity(), torch.arange(40).view(20, 2))  # type: ignore[arg-type]
    linear = LatentLinear(random_layer(8, 16, 8), torch.randn(8, 16), None, nn.Parameter(torch.ones(16)))
    read: set[int] = set()

    def record(_: nn.Module, __: nn.Module, ids: torch.Tensor, ___: object) -> torch.Tensor:
        read.update(ids[:, 0].tolist())
        return linear.weight().sum()

    monkeypatch.setattr(distillation, "divergence", record)
    monkeypatch.setattr(distillation, "rotary_of", lambda *_: None)
    monkeypatch.setattr(distillation, "BATCH_TOKENS", 4)
    monkeypatch.setattr(distillation.Lesson, "linears", lambda _: [linear])
    run = distillation.Distillation(lesson, tokens=400, seed=0)
    run.train(100)
    trained = set(read)
    read.clear()
    run.held_out_divergence()

    assert len(trained) == 18
    assert len(read) == 2
    assert trained.isdisjoint(read)


@pytest.mark.parametrize("tokens", [1, 300])
def test_divergence_and_its_gradient(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torch's own KL and autograd, in chunks that do not divide the tokens."""
    monkeypatch.setattr(distillation, "LOGIT_TOKENS", 128)
    head, other = torch.randn(50, 16), torch.randn(50, 16)
    wanted, hidden = torch.randn(tokens, 16), torch.randn(tokens, 16, requires_grad=True)
    expected = nn.functional.kl_div(
        (hidden @ head.T).log_softmax(-1), (wanted @ other.T).log_softmax(-1), log_target=True, reduction="batchmean"
    )
    (gradient,) = torch.autograd.grad(expected, hidden)

    loss = distillation.HeadDivergence.apply(hidden, wanted, head, other)
    loss.backward()

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(hidden.grad, gradient)


def test_states_without_masks_are_those_of_transformers(tiny_model: Path) -> None:
    model = load_model(tiny_model, torch.float32, torch.device("cpu"))
    ids = torch.randint(0, 256, (3, 40))

    with torch.no_grad():
        states = distillation.final_states(model, model.model.embed_tokens(ids), distillation.rotary_of(model, 40))
        expected = model.model(ids).last_hidden_state

    torch.testing.assert_close(states, expected)


def test_no_window_is_read_twice_in_a_round() -> None:
    """Ten windows in threes: one is left over, and another one in the next round."""
    orders = training.orders(10, 3, seed=0)
    first, second = ([int(i) for _ in range(3) for i in next(orders)] for _ in range(2))

    assert len(set(first)) == len(set(second)) == 9
    assert first != second
