"""An ablation: sharing must not change a variant, a switch must mean what its row says, a stop must cost nothing."""

import json
import sys

import pytest
import torch
from safetensors import safe_open
from tiny_checkpoint import CONFIG
from tiny_model import digests
from transformers import AutoModelForCausalLM, AutoTokenizer

from squeeze10_kernels import WeightFormat, dequantize, open_checkpoint
from squeeze10_kernels.llama import INPUT_GROUPS, shape_from_config
from squeeze10_quantizer import ablation, ablation_walk, cli, group
from squeeze10_quantizer.ablation_report import contradictions
from squeeze10_quantizer.ablation_tables import Variant, make_table, variants_of
from squeeze10_quantizer.calibration import load_calibration
from squeeze10_quantizer.cli import BAD_DATA, main
from squeeze10_quantizer.recipe import Recipe
from squeeze10_quantizer.uniform import round_uniform

CALIBRATION = ["--samples", "4", "--context", "64", "--device", "cpu"]
TUNED = ["--tune", "blocks", "--tune-steps", "4"]
FLAGS = {
    "all parts": ["--staged", "--pbar", "--fias"],
    "without PBAR": ["--staged", "--fias"],
    "without FIAS": ["--staged", "--pbar"],
    "without staging": ["--pbar", "--fias"],
    "without PBAR and FIAS": ["--staged"],
    "without PBAR, FIAS and staging": [],
}
"""Of `squeeze10 quantize`, by the rows of Table 5."""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("A quick brown fox jumps over the lazy dog. " * 8)
    return path


def command(model, out, text, *flags):
    """Small; the text's windows are not the calibration's."""
    measures = ["--text", str(text), "--text-context", "50"]
    return ["ablate", str(model), "--out", str(out), *measures, *CALIBRATION, *flags]


def results_of(out):
    return json.loads((out / "results.json").read_text())


def perplexity_of(checkpoint, text, capsys):
    """By `squeeze10 eval`, on the windows of `command`."""
    capsys.readouterr()
    assert main(["eval", str(checkpoint), "--text", str(text), "--context", "50", "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["perplexity"]


@pytest.fixture(scope="module")
def parts(tiny_model, text, tmp_path_factory):
    """Table 5 under both masks: the directory."""
    out = tmp_path_factory.mktemp("ablation") / "parts"
    assert main(command(tiny_model, out, text, "--table", "5", "--mask", "both")) == 0
    return out


@pytest.mark.parametrize("mask", ["columns", "elements"])
@pytest.mark.parametrize("label", FLAGS)
def test_a_variant_is_what_quantize_makes(tiny_model, text, parts, tmp_path, capsys, mask, label):
    """Streams, Hessians, ranges and starts are shared; mixed up, they give numbers of another variant."""
    table = next(table for table in results_of(parts)["tables"] if table["mask"] == mask)
    row = next(row for row in table["rows"] if row["label"] == label)
    out = tmp_path / "out"
    assert main(["quantize", str(tiny_model), str(out), "--mask", mask, *CALIBRATION, *FLAGS[label]]) == 0

    assert row["perplexity"] == perplexity_of(out, text, capsys)

    stored = weights = 0
    with safe_open(out / "model.safetensors", framework="pt") as file:
        for name in (name for name in file.keys() if "_proj." in name):  # noqa: SIM118 (safe_open is no mapping)
            stored += 8 * file.get_tensor(name).nbytes
        weights = sum(N * K for N, K in open_checkpoint(out).linears.values())
    assert row["bits"] == stored / weights


@pytest.fixture(scope="module")
def tuned_parts(tiny_model, text, tmp_path_factory):
    """Table 5, every variant tuned: the directory."""
    out = tmp_path_factory.mktemp("ablation") / "tuned"
    assert main(command(tiny_model, out, text, "--table", "5", *TUNED)) == 0
    return out


@pytest.mark.parametrize("label", ["all parts", "without PBAR", "without PBAR, FIAS and staging"])
def test_a_tuned_variant_is_what_quantize_makes(tiny_model, text, tuned_parts, tmp_path, capsys, label):
    """Every variant must read its own stream and aim at the original outputs, in a layer with its own weights."""
    row = next(row for row in results_of(tuned_parts)["tables"][0]["rows"] if row["label"] == label)
    out = tmp_path / "out"
    assert main(["quantize", str(tiny_model), str(out), *CALIBRATION, *FLAGS[label], *TUNED]) == 0

    assert row["perplexity"] == perplexity_of(out, text, capsys)
    if "--fias" in FLAGS[label]:  # both measure on the original inputs
        errors = json.loads((out / "squeeze10_report.json").read_text())["layers"].values()
        assert row["layer_error"] == pytest.approx(sum(errors) / len(errors))


def test_tuning_uses_every_level_of_a_width(tiny_model, text, tmp_path):
    """Were the codes of 8 bits still cut at 15, tuning would throw their levels away."""
    out = tmp_path / "out"
    assert main(command(tiny_model, out, text, "--table", "3", *TUNED)) == 0

    rows = {row["label"]: row for row in results_of(out)["tables"][0]["rows"]}
    assert rows["8"]["layer_error"] < rows["4"]["layer_error"] < rows["2"]["layer_error"]


def test_errors_are_on_the_original_inputs(tiny_model, parts, tmp_path):
    """On its own drifted inputs a variant without FIAS looks better than it is. Here: from outputs alone."""
    out = tmp_path / "out"
    assert main(["quantize", str(tiny_model), str(out), *CALIBRATION, *FLAGS["without FIAS"]]) == 0
    checkpoint = open_checkpoint(out)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tokens = load_calibration([], AutoTokenizer.from_pretrained(tiny_model), samples=4, context=64, seed=0).tokens
    errors = []

    def measure(name):
        def hook(linear, inputs, outputs):
            quantized = inputs[0] @ dequantize(checkpoint.layer(name)).T
            errors.append(float((quantized - outputs).square().sum() / outputs.square().sum()))

        return hook

    for name in checkpoint.linears:
        model.get_submodule(name).register_forward_hook(measure(name))
    with torch.no_grad():
        model(tokens)

    row = next(row for row in results_of(parts)["tables"][0]["rows"] if row["label"] == "without FIAS")
    assert row["layer_error"] == pytest.approx(sum(errors) / len(errors), rel=1e-3)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_stage_keeps_the_ends_of_a_row_and_has_so_many_levels(bits):
    weight = torch.rand(5, 4000)

    staged = round_uniform(weight, bits)

    assert [len(row.unique()) for row in staged] == [2**bits] * 5
    assert torch.equal(staged.amin(1), weight.amin(1))
    assert (staged - weight).abs().amax() <= 0.5001 * (weight.amax(1) - weight.amin(1)).amax() / (2**bits - 1)


def test_every_row_is_the_variant_that_its_label_names():
    """A label on another row's numbers would turn a finding around."""
    base = Recipe(mask="elements", staged=True, pbar=True, fias=True)
    tables = [make_table(number, base) for number in (3, 4, 5, 6)]
    widths, ratios, _, weights = (table.rows for table in tables)

    assert [row.variant for row in widths] == [Variant(base, bits) for bits in range(2, 9)]
    assert [f"{row.variant.recipe.salient_ratio:.0%}" for row in ratios] == [row.label for row in ratios]
    assert [row.variant.recipe.pbar_weight for row in weights] == [float(row.label) for row in weights]
    own = [row for table in tables for row in table.rows if row.paper_better is None]
    assert [row.variant for row in own] == [Variant(base)] * 4
    assert [row.label for row in own] == ["4", "20%", "all parts", "0.0003"]
    assert len(variants_of(tables)) == 7 + 6 + 6 + 5 - 3


def test_other_widths_take_the_bits_that_they_add():
    shape = shape_from_config(CONFIG)
    weight_format = WeightFormat("elements", 0.25)

    four, seven = (Variant(Recipe(), bits).bits(shape, weight_format) for bits in (4, 7))

    assert seven - four == pytest.approx(0.25 * 3)


def test_ranges_are_taken_once_for_all_their_weights(tiny_model, text, tmp_path, monkeypatch):
    """On 7B the ranges cost more than the rounding; and the original model is walked over once."""
    calls = {"ranges": 0, "walks": 0}

    def counted(key, function):
        def call(*arguments):
            calls[key] += 1
            return function(*arguments)

        return call

    monkeypatch.setattr(group, "activation_range", counted("ranges", group.activation_range))
    monkeypatch.setattr(ablation_walk, "collect_inputs", counted("walks", ablation_walk.collect_inputs))

    assert main(command(tiny_model, tmp_path / "out", text, "--table", "6")) == 0

    assert calls == {"ranges": 2 * len(INPUT_GROUPS), "walks": 2}
    assert len(results_of(tmp_path / "out")["tables"][0]["rows"]) == 5


@pytest.mark.parametrize(
    ("module", "function", "allowed"),
    [
        pytest.param(ablation_walk, "quantize_on_original", 1, id="second_layer"),
        pytest.param(ablation_walk, "quantize_on_own", 4, id="a_variant_of_the_second_layer"),
        pytest.param(ablation, "set_variant", 2, id="measuring"),
    ],
)
def test_a_stopped_run_goes_on(tiny_model, text, parts, tmp_path, monkeypatch, capsys, module, function, allowed):
    """Streams of variants without FIAS are rebuilt from their finished layers: they must be the same."""
    original, calls = getattr(module, function), []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) > allowed:
            raise KeyboardInterrupt
        return original(*arguments)

    out = tmp_path / "parts"
    arguments = command(tiny_model, out, text, "--table", "5")
    monkeypatch.setattr(module, function, stopping)
    assert main(arguments) == cli.STOPPED
    assert "goes on from there" in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.setattr(module, function, original)
    for damaged in sorted(out.with_name("parts.partial").glob("columns*/layer-00001.safetensors"))[:1]:
        damaged.write_bytes(damaged.read_bytes()[:-10])

    assert main([*arguments, "--seed", "1"]) == BAD_DATA
    assert "another" in capsys.readouterr().err
    assert main(arguments) == 0

    assert results_of(out)["tables"] == results_of(parts)["tables"][:1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts"]


def test_the_output_is_readable_without_matplotlib(tiny_model, text, tmp_path, monkeypatch, capsys):
    """It is an extra: numbers come without it, and one sentence says what is missing."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    out = tmp_path / "out"

    assert main([*command(tiny_model, out, text, "--table", "6"), "--json"]) == 0

    captured = capsys.readouterr()
    assert json.loads(captured.out) == results_of(out)
    assert captured.err.count("squeeze10-vllm[bench]") == 1
    assert sorted(digests(out)) == ["results.json", "tables.md"]
    assert "| 0.0003 | " in (out / "tables.md").read_text()


def test_a_plot_is_written_for_every_table(parts):
    """With matplotlib only."""
    for mask in ("columns", "elements"):
        assert "without PBAR" in (parts / f"table-5-{mask}.svg").read_text()


def row(label, perplexity, paper_better):
    return {"label": label, "perplexity": perplexity, "paper_better": paper_better}


def test_contradictions_are_named_and_agreement_is_not():
    rows = [row("60%", 30.0, True), row("30%", 21.0, True), row("20%", 20.0, None), row("10%", 19.0, False)]
    agreeing = [row("30%", 19.0, True), row("20%", 20.0, None), row("10%", 21.0, False)]

    worse, better = contradictions({"rows": rows})

    assert "By perplexity" in worse
    assert "worse than its own choice, 20% (20 here): 10% (19)." in worse
    assert "better than its own choice, 20% (20 here): 60% (30), 30% (21)." in better
    assert contradictions({"rows": agreeing}) == []
    assert contradictions({"rows": [row("20%", 20.0, None), row("10%", 19.9, False)]}) == [], "as good as equal"
    # the other measure contradicts by itself
    errors = [line | {"layer_error": error} for line, error in zip(agreeing, (0.3, 0.2, 0.4), strict=True)]
    (sentence,) = contradictions({"rows": errors})
    assert "By layer error" in sentence
    assert "better than its own choice, 20% (0.2 here): 30% (0.3)." in sentence


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        pytest.param(["--table", "7", "--text", "x"], 2, "must be some of 3, 4, 5 and 6; got 7", id="other_table"),
        pytest.param(["--table", "5"], 2, "one of --text and --tasks is required", id="nothing_to_measure"),
        pytest.param(["--table", "5", "--text", "missing.txt"], BAD_DATA, "missing.txt does not exist", id="no_text"),
    ],
)
def test_bad_requests_are_refused_before_any_work(tiny_model, tmp_path, capsys, flags, code, sentence):
    try:
        found = main(["ablate", str(tiny_model), "--out", str(tmp_path / "out"), *CALIBRATION, *flags])
    except SystemExit as end:
        found = end.code

    assert found == code
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
