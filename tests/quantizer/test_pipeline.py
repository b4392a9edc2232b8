"""The loop over layers: FIAS or not, the same activations as transformers, the same bytes again."""

import pytest
import torch
from assertions import assert_close
from safetensors.torch import load_file
from tiny_model import SMALL, digests
from transformers import AutoModelForCausalLM

from squeeze10_quantizer.cli import main
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.hidden_states import advance, spilled_embeddings


def test_layer_by_layer_equals_the_whole_model(tiny_model, tmp_path):
    """Streaming must not change what the layers see: rotary positions, causal mask, order."""
    decoder = Decoder(tiny_model, torch.device("cpu"))
    tokens = torch.randint(0, 256, (3, 40))
    hidden = spilled_embeddings(decoder, tokens, tmp_path / "hidden.bin")
    for index in range(decoder.shape.num_layers):
        advance(decoder, decoder.layer(index), hidden)
        decoder.drop(index)

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        states = model.model(tokens, output_hidden_states=True)
    assert_close(model.model.norm(hidden), states.last_hidden_state, rms=1e-5)


def test_same_inputs_give_the_same_bytes(tiny_model, tiny_quantized, tmp_path):
    """Every file, the model card and the report included."""
    mask = "elements" if "elements" in str(tiny_quantized) else "columns"
    again = tmp_path / "tiny-sq10"

    assert main(["quantize", str(tiny_model), str(again), "--mask", mask, *SMALL]) == 0

    assert digests(again) == digests(tiny_quantized)


@pytest.mark.parametrize("switch", ["--fias", "--pbar", "--staged", "--no-compensate"])
def test_every_switch_changes_the_result(tiny_model, tmp_path, switch):
    """A switch that does nothing would make an ablation a lie."""
    # a large λ, since at the paper's value the ranges rarely change the choice of whole channels
    common = ["--mask", "elements", "--pbar-weight", "0.1", *SMALL]
    assert main(["quantize", str(tiny_model), str(tmp_path / "plain"), *common]) == 0
    assert main(["quantize", str(tiny_model), str(tmp_path / "switched"), *common, switch]) == 0

    plain, switched = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "switched"))
    assert any(not torch.equal(plain[name], switched[name]) for name in plain)


def test_fias_concerns_later_layers_only(tiny_model, tmp_path):
    """The first layer sees the embeddings either way."""
    assert main(["quantize", str(tiny_model), str(tmp_path / "on"), *SMALL, "--fias"]) == 0
    assert main(["quantize", str(tiny_model), str(tmp_path / "off"), *SMALL]) == 0

    on, off = (load_file(tmp_path / name / "model.safetensors") for name in ("on", "off"))
    first = [name for name in on if name.startswith("model.layers.0.")]
    second = [name for name in on if name.startswith("model.layers.1.")]
    assert all(torch.equal(on[name], off[name]) for name in first)
    assert any(not torch.equal(on[name], off[name]) for name in second)
