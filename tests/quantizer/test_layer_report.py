"""The layer report: a number in the wrong cell, a map of other channels, or a page that runs what a checkpoint says."""

import json
import shutil
import sys
from html.parser import HTMLParser

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import build_checkpoint
from tiny_model import SMALL, write_tiny_model
from transformers import AutoModelForCausalLM

from squeeze10_kernels import WeightFormat, open_checkpoint
from squeeze10_kernels.llama import INPUT_GROUPS
from squeeze10_quantizer import hidden_states, layer_report
from squeeze10_quantizer.activation_ranges import TAIL, compare_activations
from squeeze10_quantizer.cli import BAD_DATA, main
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.layer_report import channel_shares
from squeeze10_quantizer.report_figures import block_extremes, block_means, density_divergence

CPU = torch.device("cpu")
SAMPLES = ["--samples", "2", "--context", "32", "--device", "cpu"]
HOSTILE = "</title><script>alert(1)</script><td onclick='x'>"


class Page(HTMLParser):
    """Tables as rows of texts, and what a browser would load or run."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self.links, self.cell = [], set(), [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.links += [f"{name}={value}" for name, value in attrs if name.startswith("on")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.cell:
            self.tables[-1][-1][-1] += data

    def heat_maps(self):
        """Those with a column for every linear: layer and linear to what stands there."""
        found = [table for table in self.tables if table[0][0] == "layer" and "q_proj" in table[0]]
        return [{(row[0], name): row[i] for row in t[1:] for i, name in enumerate(t[0]) if i} for t in found]


def written(capsys, out, *arguments):
    """The page of a command that succeeds."""
    assert main(["report", *map(str, arguments), "--out", str(out)]) == 0, capsys.readouterr().err
    return out.read_text()


@pytest.fixture(scope="module")
def unlike(tmp_path_factory):
    """A checkpoint whose embeddings are 4-bit and whose layers are far from the tiny model's."""
    folder = tmp_path_factory.mktemp("unlike")
    return build_checkpoint(folder / "sq10", WeightFormat("columns", 0.2, 1, 4), seed=7)


def seen_by_transformers(folder, tokens):
    """Inputs and outputs of every linear, `[tokens, channels]`."""
    model, seen = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), {}
    for name, module in model.model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_hook(
                lambda _, x, y, name=name: seen.update({f"model.{name}": (x[0].flatten(0, 1), y.flatten(0, 1))})
            )
    with torch.no_grad():
        model(tokens)
    return model, seen


def relative(original, other):
    return float((other - original).square().sum() / original.square().sum())


def test_activations_are_those_of_two_whole_models(tiny_model, unlike, monkeypatch):
    """Layer by layer, in batches, with the checkpoint's own embeddings; here: transformers, both models at once."""
    monkeypatch.setattr(hidden_states, "BATCH_TOKENS", 128)
    tokens = torch.randint(0, 256, (5, 64))  # three batches, the last one shorter
    keep = {1: ["self_attn.k_proj"]}
    found = list(compare_activations(Decoder(tiny_model, CPU), open_checkpoint(unlike.path), tokens, keep))
    (_, original), (model, quantized) = (seen_by_transformers(each, tokens) for each in (tiny_model, unlike.twin))

    for index, layer in enumerate(found):
        for group in INPUT_GROUPS:
            inputs = [seen[f"model.layers.{index}.{group[0]}"][0] for seen in (original, quantized)]
            comparison = layer.inputs[group[0]]
            for x, seen in zip(inputs, (comparison.original, comparison.quantized), strict=True):
                ordered = x.flatten().sort().values
                count = int(TAIL * len(ordered))
                expected = [ordered[0], ordered[-1], ordered[count - 1], ordered[-count]]
                assert [seen.low, seen.high, *seen.quantiles] == pytest.approx([float(e) for e in expected], rel=1e-4)
                assert torch.allclose(seen.channels, x.abs().amax(0), rtol=1e-4)
            assert comparison.drift.relative == pytest.approx(relative(*inputs), rel=1e-3)
        for name, errors in layer.linears.items():
            full = f"model.layers.{index}.{name}"
            x, y = original[full]
            same = x @ model.get_parameter(f"{full}.weight").detach().T
            assert errors.same_inputs.relative == pytest.approx(relative(y, same), rel=1e-3)
            assert errors.own_inputs.relative == pytest.approx(relative(y, quantized[full][1]), rel=1e-3)
    assert [sorted(layer.outputs) for layer in found] == [[], ["self_attn.k_proj"]]
    for kept, seen in zip(found[1].outputs["self_attn.k_proj"], (original, quantized), strict=True):
        assert torch.allclose(kept, seen["model.layers.1.self_attn.k_proj"][1][:64], atol=1e-4)


@pytest.mark.parametrize("mask", ["columns", "elements"])
def test_errors_without_quantized_inputs_are_those_of_quantization(tiny_model, mask, tmp_path, capsys, monkeypatch):
    """On the same tokens and with FIAS both measure the same; every number in its layer's and linear's cell."""
    checkpoint = tmp_path / "sq10"
    assert main(["quantize", str(tiny_model), str(checkpoint), "--mask", mask, "--fias", *SMALL]) == 0
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # figures take long
    fixture = ["--samples", "4", "--context", "64", "--device", "cpu"]
    page = Page(written(capsys, tmp_path / "page.html", checkpoint, "--against", tiny_model, *fixture))
    reported, same, own = page.heat_maps()

    errors = json.loads((checkpoint / "squeeze10_report.json").read_text())["layers"]
    assert len(errors) == len(reported) == 14
    for name, error in errors.items():
        _, _, index, *_, linear = name.split(".")
        assert reported[index, linear] == f"{error:.4f}"
        assert float(same[index, linear]) == pytest.approx(error, abs=2e-4)
    assert own["0", "q_proj"] == same["0", "q_proj"]  # embeddings are the original's
    assert all(own["1", linear] > same["1", linear] for linear in ("q_proj", "gate_proj"))


def test_the_map_shows_the_channels_of_the_checkpoint(tiny_quantized):
    """Of elements the mean over all rows that read a channel, whichever matrix they are of."""
    checkpoint = open_checkpoint(tiny_quantized)
    for group in INPUT_GROUPS:
        layers = [checkpoint.layer(f"model.layers.1.{name}") for name in group]
        masks = [layer.salient.expand(layer.codes.shape).float() for layer in layers]

        assert torch.equal(channel_shares(checkpoint, 1, group), torch.cat(masks).mean(0))


def test_fewer_cells_than_channels_hide_nothing():
    """A mean counts every channel, the shorter last block too; an extreme keeps its sign."""
    assert block_means(torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0]]), 3).tolist() == [[0.5, 0.0, 1.0]]
    assert block_extremes(torch.tensor([[1.0, -3.0, 2.0, 0.0, -1.0]]), 3).tolist() == [[-3.0, 2.0, -1.0]]


def test_the_divergence_is_the_paper_s_way_round():
    """KL(quantized || original), written out; of equal densities none."""
    original, quantized = torch.tensor([7.0, 1.0]), torch.tensor([3.0, 5.0])

    expected = sum(q * torch.tensor(q / p).log() for q, p in ((0.4, 0.8), (0.6, 0.2)))

    assert density_divergence(original, quantized) == pytest.approx(float(expected))
    assert density_divergence(original, 3 * original) != 0  # counts are raised by one each
    assert density_divergence(original, original) == 0


@pytest.mark.parametrize("tiny_quantized", ["columns"], indirect=True)
def test_page_loads_and_runs_nothing(tiny_model, tiny_quantized, tmp_path, capsys):
    """The names in a checkpoint's report come from whoever made it."""
    checkpoint = shutil.copytree(tiny_quantized, tmp_path / "<script>1")
    report = json.loads((checkpoint / "squeeze10_report.json").read_text())
    losses = {"before": 0.5, "after": 0.25}
    said = {"model": HOSTILE, "command": HOSTILE, "blocks": [losses, None], "divergence": losses}
    (checkpoint / "squeeze10_report.json").write_text(json.dumps(report | said))

    text = written(capsys, tmp_path / "page.html", checkpoint, "--against", tiny_model, *SAMPLES)

    page = Page(text)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "foreignobject"}
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert page.links
    assert text.count("<svg") == text.count("</svg>") == 7
    assert text.count("://") == text.count("http://www.w3.org/")  # names of SVG's own
    assert [row[1] for row in page.tables[0] if row[0] in ("model", "command")] == [HOSTILE, HOSTILE]
    assert "0.5000 before, 0.2500" in text


def test_the_same_command_gives_the_same_page(unlike, tmp_path, capsys):
    """No dates, no random names; and what no report was written of is said."""
    pages = [written(capsys, tmp_path / f"{name}.html", unlike.path) for name in ("one", "two")]

    assert pages[0] == pages[1]
    assert "squeeze10_report.json has no errors for these weights" in pages[0]
    assert Page(pages[0]).heat_maps() == []


@pytest.mark.parametrize("tiny_quantized", ["columns"], indirect=True)
def test_without_matplotlib_the_tables_are_there(tiny_quantized, tmp_path, capsys, monkeypatch):
    """As in an ablation: it is an extra, and one sentence says what is missing."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    text = written(capsys, tmp_path / "page.html", tiny_quantized)

    assert capsys.readouterr().err.count("pip install 'squeeze10-vllm[bench]'") == 1
    assert "<svg" not in text
    assert text.count("No plot: matplotlib was missing.") == 1
    assert len(Page(text).heat_maps()) == 1


def spoiled_report(folder, **changes):
    path = folder / "squeeze10_report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def overflowing(folder):
    tensors = load_file(folder / "model.safetensors")
    for name in ("up_proj", "down_proj"):
        tensors[f"model.layers.1.mlp.{name}.weight"].fill_(3e38)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("tiny_quantized", ["columns"], indirect=True)
@pytest.mark.parametrize(
    ("spoil", "flags", "sentence"),
    [
        pytest.param(lambda c, _: spoiled_report(c, blocks=[{"before": "x"}]), [], "under blocks", id="blocks"),
        pytest.param(lambda c, _: spoiled_report(c, divergence=1), [], "under divergence", id="divergence"),
        pytest.param(lambda c, _: (c / "config.json").unlink(), [], "has no config.json", id="no_checkpoint"),
        pytest.param(lambda c, m: overflowing(m), SAMPLES, "in decoder layer 1; give other text", id="overflow"),
        pytest.param(lambda c, m: None, [*SAMPLES, "--samples", "0"], "samples must be at least 1", id="no_samples"),
    ],
)
def test_what_cannot_be_reported_is_said_and_nothing_written(
    tiny_model, tiny_quantized, tmp_path, capsys, spoil, flags, sentence
):
    """Exit 65, one sentence, no file and none half written."""
    checkpoint = shutil.copytree(tiny_quantized, tmp_path / "checkpoint")
    model = shutil.copytree(tiny_model, tmp_path / "model")
    spoil(checkpoint, model)
    against = ["--against", str(model), *flags] if flags else []

    assert main(["report", str(checkpoint), "--out", str(tmp_path / "page.html"), *against]) == BAD_DATA

    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("squeeze10: ")
    assert sentence in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "model"]


def test_another_model_is_refused(unlike, tmp_path, capsys):
    """Whose layers would be compared with those of a stranger."""
    other = write_tiny_model(tmp_path / "other", intermediate_size=512)

    assert (
        main(["report", str(unlike.path), "--out", str(tmp_path / "p"), "--against", str(other), *SAMPLES]) == BAD_DATA
    )

    assert f"{other} must have the shapes of {unlike.path}" in capsys.readouterr().err


def test_an_existing_file_is_kept(unlike, tmp_path, capsys, monkeypatch):
    """Also one that appears while the activations are compared."""
    out = tmp_path / "page.html"
    render = layer_report.render
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(layer_report, "render", lambda *found: (out.write_text("mine"), render(*found))[1])

    for _ in range(2):
        assert main(["report", str(unlike.path), "--out", str(out)]) == BAD_DATA

        assert "exists already" in capsys.readouterr().err
        assert out.read_text() == "mine"


def test_calibration_without_an_original_is_wrong_usage(unlike, tmp_path):
    """It would be read by nobody."""
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(unlike.path), "--out", str(tmp_path / "p"), "--calibration", "text.txt"])
