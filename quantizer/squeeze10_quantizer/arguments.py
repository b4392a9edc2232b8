"""The options of the commands; what they do is in `cli.py`."""

import argparse
from pathlib import Path

from squeeze10_kernels.format import HEAD_BITS


def add_quantize(command: argparse.ArgumentParser) -> None:
    """`squeeze10 quantize`; defaults stand in `Recipe`."""
    command.add_argument("model", type=Path, metavar="MODEL", help="LLaMA-family Hugging Face directory (safetensors)")
    command.add_argument(
        "out",
        type=Path,
        metavar="OUT",
        help="checkpoint directory to write; must not exist",
    )
    command.add_argument(
        "--mask",
        choices=("columns", "elements"),
        default="columns",
        help="4-bit weights: whole input channels (1.6 bits), or any element (the paper; 2.6 bits)",
    )
    command.add_argument("--salient-ratio", type=float, default=0.2, help="share of 4-bit weights, 0 to 1")
    add_calibration(command)
    switch = argparse.BooleanOptionalAction
    command.add_argument(
        "--fias",
        action=switch,
        default=False,
        help="calibrate on the original model's activations (paper 4.3); costs accuracy, see LOG.md",
    )
    command.add_argument(
        "--pbar",
        action=switch,
        default=False,
        help="count activation ranges in the salience (paper Eq. 8); costs accuracy, see LOG.md",
    )
    command.add_argument(
        "--staged",
        action=switch,
        default=False,
        help="round to 4 bits first (paper 4.1); costs accuracy, see LOG.md",
    )
    command.add_argument("--compensate", action=switch, default=True, help="compensate rounding errors (GPTQ)")
    command.add_argument("--pbar-weight", type=float, default=3e-4, help="with --pbar: λ of Eq. 8")
    command.add_argument("--pbar-tokens", type=int, default=4096, help="with --pbar: tokens that give the ranges")
    command.add_argument("--damp-ratio", type=float, default=0.01, help="damping, share of the mean diagonal")
    command.add_argument(
        "--chunks",
        type=int,
        choices=(1, 2, 4, 8),
        default=None,
        help="largest tensor-parallel size; default: the largest that the shapes allow",
    )
    command.add_argument(
        "--head-bits",
        type=int,
        choices=HEAD_BITS,
        default=16,
        help="of the embeddings and lm_head: 16, as they are; 8, half of that and nearly no error; 4, a quarter; "
        "served, a tied table is held twice",
    )
    command.add_argument(
        "--tensorboard",
        type=Path,
        default=None,
        metavar="DIR",
        help="write errors and losses there for TensorBoard (pip install squeeze10-vllm[tensorboard])",
    )
    add_tuning(command)
    add_device(command)


def add_calibration(command: argparse.ArgumentParser) -> None:
    """What `squeeze10 quantize` and `ablate` calibrate on, and `report` compares on."""
    command.add_argument(
        "--calibration",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="text, .jsonl (text or messages) or .safetensors (input_ids); default: a bundled text",
    )
    command.add_argument("--samples", type=int, default=128, help="calibration sequences")
    command.add_argument("--context", type=int, default=2048, help="tokens of each")
    command.add_argument("--seed", type=int, default=0, help="chooses the calibration windows")


def add_tuning(command: argparse.ArgumentParser) -> None:
    """What `squeeze10 quantize` trains."""
    command.add_argument(
        "--tune",
        choices=("none", "blocks", "distill"),
        default="none",
        help="train codes and scales after rounding: each decoder layer towards the original's outputs (blocks), "
        "then also the whole model towards the original's probabilities (distill)",
    )
    add_tune_steps(command)
    command.add_argument(
        "--tune-inputs",
        type=float,
        default=1.0,
        help="what a layer reads while it is tuned: 1, what it will read in the quantized model; "
        "0, the original activations; between, a mixture",
    )
    command.add_argument(
        "--distill-tokens", type=int, default=30_000_000, help="tokens of training for the whole model"
    )
    command.add_argument(
        "--distill-codes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train codes and scales in distillation; off: scales only, for models whose training would not fit",
    )
    command.add_argument(
        "--checkpointing",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="compute layers twice in distillation: slower, but fits where their activations would not",
    )
    command.add_argument(
        "--distill-text",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="what distillation reads, all of it, as often as needed; default: the calibration text",
    )


def add_tune_steps(command: argparse.ArgumentParser) -> None:
    """For `--tune blocks` and `distill`."""
    command.add_argument(
        "--tune-steps",
        type=int,
        default=400,
        help="steps of training for each decoder layer at most; it ends before when held-out text stops gaining",
    )


def add_inspect(command: argparse.ArgumentParser) -> None:
    """`squeeze10 inspect`."""
    command.add_argument("checkpoint", type=Path, metavar="CKPT")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def add_report(command: argparse.ArgumentParser) -> None:
    """`squeeze10 report`."""
    command.add_argument("checkpoint", type=Path, metavar="CKPT")
    command.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="must not exist")
    command.add_argument(
        "--against",
        type=Path,
        metavar="MODEL",
        help="the original: also compare activations, on the text of the options below",
    )
    add_calibration(command)
    command.set_defaults(samples=16, wrong_usage=command.error)
    add_device(command)


def add_eval(command: argparse.ArgumentParser) -> None:
    """`squeeze10 eval`."""
    command.add_argument("model", type=Path, metavar="CKPT_OR_MODEL")
    add_measures(command, "--context")
    command.add_argument(
        "--against",
        type=Path,
        metavar="MODEL",
        help="the original: also print the divergence from its probabilities on --text, in nats a token, and how "
        "often both think the same token the likeliest",
    )
    command.add_argument(
        "--endpoint",
        metavar="URL",
        help="take --tasks from a running OpenAI server (http://HOST:PORT/v1) that gives log-probabilities of prompts, "
        "as vLLM does; only the tokenizer is read from CKPT_OR_MODEL, and a key from OPENAI_API_KEY",
    )
    command.add_argument("--served-model", metavar="NAME", help="the model's name there")
    command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    add_device(command)


def add_measures(command: argparse.ArgumentParser, context: str) -> None:
    """What `squeeze10 eval` and `ablate` measure; `context` is the option for a window's tokens."""
    command.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text, whose perplexity is taken")
    command.add_argument(
        "--tasks",
        type=lambda names: [name.strip() for name in names.split(",")],
        default=[],
        metavar="NAME,...",
        help="arc_easy, arc_challenge, boolq, winogrande: accuracy without examples, by lm-eval",
    )
    command.add_argument(
        "--task-data",
        type=Path,
        metavar="DIR",
        help="holds NAME.jsonl for every task; a line has query, choices (winogrande: continuation, context_options) "
        "and gold, the index of the right choice",
    )
    command.add_argument("--batch", type=int, default=8, help="choices of tasks computed at once")
    command.add_argument(
        context,
        type=int,
        default=2048,
        dest="window",
        metavar="TOKENS",
        help="tokens of a window of the text; windows do not overlap",
    )
    command.add_argument("--max-tokens", type=int, default=None, help="read only the first tokens of the text")
    command.set_defaults(wrong_usage=command.error)


def add_ablate(command: argparse.ArgumentParser) -> None:
    """`squeeze10 ablate`; the tables stand in `ablation_tables.py`."""
    command.add_argument("model", type=Path, metavar="MODEL", help="LLaMA-family Hugging Face directory (safetensors)")
    command.add_argument(
        "--table",
        type=table_numbers,
        required=True,
        metavar="N,...",
        help="of the paper: 3, bits of the salient part; 4, its share; 5, PBAR, FIAS and staging; 6, λ; "
        "variants of several tables are quantized once",
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="for results, tables and plots; new")
    command.add_argument("--mask", choices=("columns", "elements", "both"), default="columns")
    command.add_argument("--salient-ratio", type=float, default=0.2, help="share of salient weights; table 4 varies it")
    command.add_argument(
        "--staged",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="round first to the width of the salient part, as the paper, in tables 3, 4 and 6; 5 has both",
    )
    command.add_argument(
        "--tune",
        choices=("none", "blocks"),
        default="none",
        help="train the codes and scales of every variant, too, each of which then takes samples x context x hidden "
        "x 4 bytes on disk, or on a GPU with room",
    )
    add_tune_steps(command)
    add_calibration(command)
    add_measures(command, "--text-context")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    add_device(command)


def table_numbers(text: str) -> list[int]:
    """Distinct numbers of the paper's tables, from `N,...`."""
    numbers = [int(number) for number in text.split(",")]
    if not set(numbers) <= {3, 4, 5, 6}:
        raise argparse.ArgumentTypeError(f"must be some of 3, 4, 5 and 6; got {text}")
    return list(dict.fromkeys(numbers))


def add_generate(command: argparse.ArgumentParser) -> None:
    """`squeeze10 generate`."""
    command.add_argument("model", type=Path, metavar="MODEL", help="the original model directory")
    command.add_argument("out", type=Path, metavar="OUT.jsonl", help="for --distill-text; must not exist")
    command.add_argument(
        "--text",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="where its texts begin; default: a bundled text",
    )
    command.add_argument("--tokens", type=int, default=4_000_000, help="how many to write at least")
    command.add_argument("--context", type=int, default=1024, help="tokens of a text after its beginning, at most")
    command.add_argument("--batch", type=int, default=64, help="texts written at once; more is faster")
    command.add_argument(
        "--chats",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="half of the texts are chats, both sides by the model, if it has a chat template",
    )
    command.add_argument("--temperature", type=float, default=1.0, help="below 1: plainer texts")
    command.add_argument("--seed", type=int, default=0)
    add_device(command)


def add_device(command: argparse.ArgumentParser) -> None:
    """`--device`."""
    command.add_argument("--device", default="auto", help="cpu, cuda or cuda:N; auto takes a GPU if there is one")
