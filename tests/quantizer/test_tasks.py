"""Zero-shot tasks: other prompts, choices or metrics than lm-eval's give a number that compares with nobody's."""

import json
import random
import shutil
import sys

import pytest
import torch
from completions_server import echoing, endpoint
from tiny_checkpoint import byte_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from squeeze10_kernels import dequantize, open_checkpoint
from squeeze10_quantizer.cli import BAD_DATA, IO_ERROR, main
from squeeze10_quantizer.tasks import load_tasks

ITEMS, WRONG = 6, 2
"""Of the items' answers, so many are not what the model prefers."""
TOKENIZER = byte_tokenizer()


def words(count, letters):
    """Words of so many letters."""
    return " ".join("".join(random.choices("abcdefghij", k=letters)) for _ in range(count))


def arc_item(index):
    """A local row and, by hand, the prompt of lm-eval's task with each of its choices."""
    question = f"{words(3, 4)}?\n{words(2, 3)}"
    # as long as each other in every second item, so that not the length alone decides
    choices = [words(1, 4 + each * (index % 2)) for each in range(4 - index % 2)]
    pairs = [(f"Question: {question}\nAnswer:", f" {choice}") for choice in choices]
    return {"query": f"Question: {question}", "choices": choices}, pairs, choices


def boolq_item(_):
    passage, question = f"{words(5, 5)}.\nQuestion: {words(1, 3)}", words(3, 4)
    pairs = [(f"{passage}\nQuestion: {question}?\nAnswer:", f" {choice}") for choice in ("no", "yes")]
    row = {"query": f"Passage: {passage}\nQuestion: {question}?", "choices": ["no", "yes"]}
    return row, pairs, ["no", "yes"]


def winogrande_item(_):
    start, continuation = words(3, 4), f"{words(2, 3)}_{words(1, 3)}."
    options = [f"{start} {words(1, 4)}" for _ in range(2)]
    pairs = [(option, f" {continuation}") for option in options]
    return {"context_options": options, "continuation": continuation}, pairs, options


MAKERS = {"arc_easy": arc_item, "arc_challenge": arc_item, "boolq": boolq_item, "winogrande": winogrande_item}


def log_probability(model, context, continuation):
    """Sum over the continuation's tokens, of a sequence by itself."""
    ids = torch.tensor(TOKENIZER(context + continuation)["input_ids"])
    count = len(TOKENIZER(continuation)["input_ids"])
    with torch.no_grad():
        scores = model(ids[None]).logits[0, :-1].log_softmax(-1)
    return scores.gather(1, ids[1:, None])[-count:].sum().item()


def write_task(path, make, model):
    """Items of which the model gets all but `WRONG` right; returns its accuracy, also by length of the choices."""
    lines, right = [], []
    for index in range(ITEMS):
        row, pairs, choices = make(index)
        scores = [log_probability(model, *pair) for pair in pairs]
        by_length = [score / len(choice) for score, choice in zip(scores, choices, strict=True)]
        gold = (scores.index(max(scores)) + (index < WRONG)) % len(scores)
        lines.append(json.dumps({**row, "gold": gold}) + "\n")
        right.append((scores.index(max(scores)) == gold, by_length.index(max(by_length)) == gold))
    path.write_text("\n".join(lines))
    return [sum(column) / ITEMS for column in zip(*right, strict=True)]


def run(capsys, model, folder, *arguments):
    """Exit code, standard output and the last line of standard error."""
    code = main(["eval", str(model), "--task-data", str(folder), "--device", "cpu", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.strip().splitlines()[-1]


def stderr(share):
    """Of a mean of zeros and ones."""
    return (share * (1 - share) / (ITEMS - 1)) ** 0.5


@pytest.mark.parametrize("task", MAKERS)
def test_prompts_are_letter_for_letter_those_of_lm_eval(tmp_path, task):
    """Two choices often keep their order under a slightly other prompt, so accuracy alone shows too little."""
    items = [MAKERS[task](index) for index in range(ITEMS)]
    (tmp_path / f"{task}.jsonl").write_text("\n".join(json.dumps({**row, "gold": 1}) for row, _, _ in items))

    loaded = load_tasks([task], tmp_path)[task]
    loaded.build_all_requests()

    assert [request.args for request in loaded.instances] == [pair for _, pairs, _ in items for pair in pairs]


@pytest.mark.parametrize("tiny_quantized", ["columns"], indirect=True)
def test_accuracy_equals_sums_of_log_probabilities(tiny_model, tiny_quantized, tmp_path, capsys):
    """Written out here with plain transformers, one sequence at a time, for the plain model and the checkpoint."""
    original = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    quantized = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    checkpoint = open_checkpoint(tiny_quantized)
    for name in checkpoint.linears:
        quantized.get_submodule(name).weight.data = dequantize(checkpoint.layer(name))

    for folder, model in ((tiny_model, original), (tiny_quantized, quantized)):
        accuracy = {name: write_task(tmp_path / f"{name}.jsonl", make, model) for name, make in MAKERS.items()}
        code, out, _ = run(capsys, folder, tmp_path, "--tasks", ",".join(MAKERS), "--json", "--batch", "4")

        assert code == 0
        results = json.loads(out)["tasks"]
        assert list(results) == list(MAKERS)
        for name, result in results.items():
            acc, acc_norm = accuracy[name]
            expected = {"acc": acc, "acc_stderr": stderr(acc), "items": ITEMS}
            if name.startswith("arc"):
                expected |= {"acc_norm": acc_norm, "acc_norm_stderr": stderr(acc_norm)}
            assert result == pytest.approx(expected)
            assert acc == (ITEMS - WRONG) / ITEMS
        assert accuracy["arc_easy"][0] != accuracy["arc_easy"][1], "acc_norm shows nothing that acc does not"


def test_text_and_tasks_are_printed_together(tiny_model, tmp_path, capsys):
    """A line each, also in JSON one object."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    _, acc_norm = write_task(tmp_path / "arc_easy.jsonl", arc_item, model)
    (tmp_path / "text.txt").write_text("A quick brown fox. " * 8)
    both = ["--tasks", "arc_easy", "--text", str(tmp_path / "text.txt"), "--context", "50"]

    lines = run(capsys, tiny_model, tmp_path, *both)[1].splitlines()
    result = json.loads(run(capsys, tiny_model, tmp_path, *both, "--json")[1])

    assert lines[0] == f"perplexity {result['perplexity']:.4f}, {result['tokens']} tokens"
    norm = f"acc_norm {acc_norm:.4f} ± {stderr(acc_norm):.4f}"
    assert lines[1:] == [f"arc_easy: acc 0.6667 ± {stderr(2 / 3):.4f}, {norm}, 6 items"]
    assert set(result) == {"perplexity", "tokens", "tasks"}


GOOD = {"query": "Question: a?", "choices": ["b", "c"], "gold": 0}
YES = {"query": "Passage: a\nQuestion: b?", "choices": ["yes", "no"], "gold": 0}
THREE = {"context_options": ["a", "b", "c"], "continuation": "d", "gold": 0}


@pytest.mark.parametrize(
    ("task", "row", "sentence"),
    [
        pytest.param("arc_easy", "{", "in line 3: Expecting", id="broken_json"),
        pytest.param("arc_easy", b'"\xff"', "in line 3: 'utf-8' codec", id="no_utf8"),
        pytest.param("arc_easy", "[]", "in line 3: there is no JSON object", id="no_object"),
        pytest.param("arc_easy", {**GOOD, "query": "a?"}, "query must be a string like", id="no_question"),
        pytest.param("arc_easy", {**GOOD, "query": 1}, "query must be a string like", id="no_text"),
        pytest.param("arc_easy", {**GOOD, "choices": ["b", ""]}, "choices must be a list", id="empty_choice"),
        pytest.param("arc_easy", {**GOOD, "choices": "bc"}, "choices must be a list", id="no_list"),
        pytest.param("arc_easy", {**GOOD, "gold": -1}, "gold must be an index", id="negative_gold"),
        pytest.param("arc_easy", {**GOOD, "gold": 2}, "gold must be an index", id="gold_out_of_range"),
        pytest.param("arc_easy", {**GOOD, "gold": "A"}, "gold must be an index", id="gold_is_a_letter"),
        pytest.param("boolq", YES, 'choices must be ["no", "yes"]', id="boolq_turned_round"),
        pytest.param("winogrande", THREE, "context_options must be two", id="three_options"),
    ],
)
def test_broken_item_is_refused_with_its_line(tiny_model, tmp_path, capsys, task, row, sentence):
    """Exit 65 and one sentence with file and line."""
    good = {
        "arc_easy": GOOD,
        "boolq": {**YES, "choices": ["no", "yes"]},
        "winogrande": {**THREE, "context_options": ["a", "b"]},
    }
    line = json.dumps(row) if isinstance(row, dict) else row
    broken = line if isinstance(line, bytes) else line.encode()
    file = tmp_path / f"{task}.jsonl"
    file.write_bytes(json.dumps(good[task]).encode() + b"\n\n" + broken + b"\n")

    code, out, error = run(capsys, tiny_model, tmp_path, "--tasks", task)

    assert (code, out) == (BAD_DATA, "")
    assert error.startswith(f"squeeze10: {file} must hold an item in every line, but in line 3: ")
    assert sentence in error


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(["--tasks", "arc_easy,nonsense"], "winogrande; got 'nonsense'.", id="unknown_task"),
        pytest.param(["--tasks", "boolq"], "boolq.jsonl does not exist; --task-data must be", id="no_file"),
        pytest.param(["--tasks", "arc_challenge"], "must hold at least 2 items; it has 1.", id="one_item"),
        pytest.param(["--tasks", "arc_easy", "--batch", "0"], "--batch must be at least 1; got 0.", id="no_batch"),
        pytest.param(["--tasks", "arc_easy", "--text", "nowhere.txt"], "nowhere.txt does not exist", id="no_text"),
    ],
)
def test_unusable_tasks_are_refused_with_a_sentence(tiny_model, tmp_path, capsys, arguments, sentence):
    """Before the model is loaded."""
    (tmp_path / "arc_easy.jsonl").write_text(f"{json.dumps(GOOD)}\n" * 2)
    (tmp_path / "arc_challenge.jsonl").write_text(json.dumps(GOOD))

    code, out, error = run(capsys, tiny_model, tmp_path, *arguments)

    assert (code, out) == (BAD_DATA, "")
    assert error.startswith("squeeze10: ")
    assert sentence in error


def test_missing_lm_eval_is_said_with_the_way_out(tiny_model, tmp_path, capsys, monkeypatch):
    """Its part that computes stands for all of it: that is where what its extra `hf` brings is imported."""
    (tmp_path / "arc_easy.jsonl").write_text(f"{json.dumps(GOOD)}\n" * 2)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)

    code, _, error = run(capsys, tiny_model, tmp_path, "--tasks", "arc_easy")

    assert code == BAD_DATA
    assert error.startswith("squeeze10: --tasks needs lm-eval (")
    assert error.endswith("run: pip install 'squeeze10-vllm[eval]'.")


@pytest.mark.parametrize("arguments", [[], ["--tasks", "arc_easy"]])
def test_half_a_command_is_wrong_usage(tiny_model, arguments):
    """Neither text nor tasks, tasks without their data."""
    with pytest.raises(SystemExit, match="2"):
        main(["eval", str(tiny_model), *arguments])


def test_an_endpoint_has_the_accuracy_of_the_model_it_serves(tiny_model, tmp_path, capsys):
    """Served and in memory one model gets one number, also with a tokenizer that begins every text with a token."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = byte_tokenizer()
    begin = ("<|begin|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=[begin])
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for name, make in MAKERS.items():
        write_task(tmp_path / f"{name}.jsonl", make, model)
    tasks = ["--tasks", ",".join(MAKERS), "--json"]

    with endpoint(echoing(model)) as (url, requests):
        served = run(capsys, folder, tmp_path, *tasks, "--endpoint", url, "--served-model", "tiny", "--batch", "4")
    loaded = run(capsys, folder, tmp_path, *tasks)

    assert (served[0], loaded[0]) == (0, 0)
    assert json.loads(served[1]) == json.loads(loaded[1])
    assert {request["model"] for request in requests} == {"tiny"}
    prompts = [prompt for request in requests[1:] for prompt in request["prompt"]]
    query = json.loads((tmp_path / "arc_easy.jsonl").read_text().splitlines()[0])
    text = f"{query['query']}\nAnswer: {query['choices'][0]}"
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] in prompts
    assert len(prompts) > len(requests) > 1  # several at once


@pytest.mark.parametrize(
    ("logprobs", "path", "sentence"),
    [
        pytest.param({"token_logprobs": [-1.0], "top_logprobs": [{"": -1.0}]}, "", "it gave 1;", id="no_echo"),
        pytest.param(None, "", "it gave 0;", id="no_log_probabilities"),
        pytest.param(None, "/v2", "must complete prompts for the model 'tiny'; it says: {}.", id="no_such_path"),
    ],
)
def test_an_endpoint_without_prompt_probabilities_is_refused(tiny_model, tmp_path, capsys, logprobs, path, sentence):
    """Without them every choice has the sum 0, and the first one wins: a number, and a wrong one."""
    (tmp_path / "arc_easy.jsonl").write_text(f"{json.dumps(GOOD)}\n" * 2)

    with endpoint(lambda _: {"choices": [{"index": 0, "logprobs": logprobs}]}) as (url, _):
        flags = ["--tasks", "arc_easy", "--endpoint", url + path, "--served-model", "tiny"]
        code, out, error = run(capsys, tiny_model, tmp_path, *flags)

    assert (code, out) == (BAD_DATA, "")
    assert error.startswith(f"squeeze10: {url}{path} must ")
    assert sentence in error


def test_an_endpoint_that_nobody_serves_is_an_io_error(tiny_model, tmp_path, capsys):
    """One sentence, exit 74."""
    (tmp_path / "arc_easy.jsonl").write_text(f"{json.dumps(GOOD)}\n" * 2)
    with endpoint(None) as (url, _):
        pass
    code, out, error = run(
        capsys, tiny_model, tmp_path, "--tasks", "arc_easy", "--endpoint", url, "--served-model", "x"
    )

    assert (code, out) == (IO_ERROR, "")
    assert error.startswith("squeeze10: Reading or writing failed: ")


def test_missing_packages_for_an_endpoint_are_said(tiny_model, tmp_path, capsys, monkeypatch):
    """lm-eval itself has them in an extra of its own."""
    (tmp_path / "arc_easy.jsonl").write_text(f"{json.dumps(GOOD)}\n" * 2)
    monkeypatch.setattr("lm_eval.models.api_models.find_spec", lambda _: None)

    code, _, error = run(capsys, tiny_model, tmp_path, "--tasks", "arc_easy", "--endpoint", "u", "--served-model", "x")

    assert (code, error[-40:]) == (BAD_DATA, "run: pip install 'squeeze10-vllm[eval]'.")


@pytest.mark.parametrize("more", [["--endpoint", "u"], ["--endpoint", "u", "--served-model", "m", "--text", "t"]])
def test_half_an_endpoint_is_wrong_usage(tiny_model, tmp_path, more):
    """No name, or a text, of which a server is not asked."""
    with pytest.raises(SystemExit, match="2"):
        main(["eval", str(tiny_model), "--tasks", "arc_easy", "--task-data", str(tmp_path), *more])
