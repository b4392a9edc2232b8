"""The command `squeeze10`.

Exit codes: 0 done, 2 wrong usage, 65 bad data, 69 serving does not work here (`doctor`) or the GPU is too small,
74 input/output error, 75 stopped and resumable.
"""

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from squeeze10_kernels import BadInput
from squeeze10_quantizer.arguments import (
    add_ablate,
    add_device,
    add_eval,
    add_generate,
    add_inspect,
    add_quantize,
    add_report,
)

if TYPE_CHECKING:
    from squeeze10_kernels.format import Mask
    from squeeze10_quantizer.measures import Measures

BAD_DATA: Final = 65
UNAVAILABLE: Final = 69
IO_ERROR: Final = 74
STOPPED: Final = 75


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; every expected failure is one sentence on standard error."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = build_parser().parse_args(words)
    options.words = words
    signal.signal(signal.SIGTERM, interrupt)
    try:
        code = options.run(options) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `inspect CKPT | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails again when it ends
        return 128 + signal.SIGPIPE
    except BadInput as error:
        return fail(str(error), BAD_DATA)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported before it is needed
            raise
        return fail("The GPU's memory is not enough; try a lower --batch, --samples or --context.", UNAVAILABLE)
    except OSError as error:
        return fail(f"Reading or writing failed: {error}.", IO_ERROR)
    except KeyboardInterrupt:
        again = "; the same command goes on from there" if options.run in (quantize, ablate) else ""
        return fail(f"Stopped{again}.", STOPPED)


def fail(message: str, code: int) -> int:
    """Say one sentence on standard error."""
    print(f"squeeze10: {message}", file=sys.stderr)
    return code


def interrupt(_: int, __: FrameType | None) -> None:
    """SIGTERM stops like Ctrl-C."""
    raise KeyboardInterrupt


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="squeeze10",
        description="Quantize a LLaMA to 1.6 real bits per weight, inspect and evaluate the result. "
        "Serve it with: vllm serve CKPT --quantization squeeze10",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_quantize(
        add_command(
            commands, "quantize", quantize, "quantize a model directory; repeat the command to go on after a stop"
        )
    )
    add_inspect(add_command(commands, "inspect", inspect, "say a checkpoint's real bits and the error of every layer"))
    add_report(add_command(commands, "report", report, "write every layer's errors and activation ranges as HTML"))
    add_eval(add_command(commands, "eval", evaluate, "perplexity and zero-shot tasks under a checkpoint or model"))
    command = add_command(commands, "verify", verify, "check every file, tensor and sum of a checkpoint")
    command.add_argument("checkpoint", type=Path, metavar="CKPT")
    command = add_command(commands, "dequantize", dequantize, "write a checkpoint as a plain bf16 model directory")
    command.add_argument("checkpoint", type=Path, metavar="CKPT")
    command.add_argument("out", type=Path, metavar="OUT")
    add_ablate(
        add_command(commands, "ablate", ablate, "the paper's ablations on a model; repeat it to go on after a stop")
    )
    add_generate(add_command(commands, "generate", generate, "let a model write text to distill it on"))
    add_device(add_command(commands, "doctor", doctor, "say whether serving works here, and what to do if not"))
    command = add_command(commands, "demo-model", demo_model, "write SmolLM2-135M-Instruct as a model directory")
    command.add_argument("out", type=Path, metavar="DIR")
    return parser


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], help_text: str
) -> argparse.ArgumentParser:
    """Add a command that calls `run`, whose number, if any, is the exit code."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=help_text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    command.set_defaults(run=run)
    return command


def device_of(name: str) -> Any:
    """The torch device of a `--device` value."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"The device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


def quantize(options: argparse.Namespace) -> None:
    """Quantize, then say what came out."""
    from squeeze10_quantizer.curves import Curves
    from squeeze10_quantizer.inspection import inspect_checkpoint
    from squeeze10_quantizer.quantize import Text, quantize
    from squeeze10_quantizer.recipe import Recipe

    fields = {name: getattr(options, name) for name in Recipe.__dataclass_fields__}
    text = Text(options.calibration, options.distill_text)
    curves, device = Curves(options.tensorboard), device_of(options.device)
    quantize(options.model, options.out, Recipe(**fields), text, device, command_of(options), curves)
    print_summary(options.out, inspect_checkpoint(options.out))


def command_of(options: argparse.Namespace) -> str:
    """The command line as a report has it: what it read and wrote by name only."""
    from squeeze10_quantizer.quantize import model_name

    names = {options.model: model_name(options.model), options.out: "OUT"}
    return shlex.join(["squeeze10", *(names.get(Path(word)) or by_name(word) for word in options.words)])


def by_name(word: str) -> str:
    """A word of the command line with a path's last part in its place."""
    option, equals, value = word.partition("=")
    return option + equals + Path(value).name if equals else Path(word).name if "/" in word else word


def inspect(options: argparse.Namespace) -> None:
    """Print a checkpoint's bits."""
    from squeeze10_quantizer.inspection import inspect_checkpoint

    summary = inspect_checkpoint(options.checkpoint)
    if options.json:
        print(json.dumps(summary, indent=2))
        return
    for layer in summary["layers"]:
        error = layer["relative_output_error"]
        shown = "unknown" if error is None else f"{error:.4f}"
        print(f"{layer['name']:40} {layer['shape']!s:16} {layer['bits']:.3f} bits, relative output error {shown}")
    print_summary(options.checkpoint, summary)


def report(options: argparse.Namespace) -> None:
    """Write a report on every layer."""
    if options.calibration and not options.against:
        options.wrong_usage("--calibration needs --against")
    from squeeze10_quantizer.layer_report import Against, write_layer_report

    fields = {name: getattr(options, name) for name in ("calibration", "samples", "context", "seed")}
    against = Against(options.against, device=device_of(options.device), **fields) if options.against else None
    write_layer_report(options.checkpoint, options.out, against)
    print(f"{options.out}: the layers of {options.checkpoint}")


def print_summary(path: Path, summary: dict[str, Any]) -> None:
    """One line on a checkpoint."""
    print(
        f"{path}: {summary['bits_per_weight']:.3f} bits per weight in the linear layers, "
        f"{summary['model_bits_per_weight']:.3f} in the whole model; "
        f"{summary['salient_ratio']:.1%} salient, mask {summary['mask']}"
    )


def evaluate(options: argparse.Namespace) -> None:
    """Print a perplexity, the accuracy in tasks, or both."""
    if options.against and not options.text:
        options.wrong_usage("--against needs --text")
    if bool(options.endpoint) != bool(options.served_model):
        options.wrong_usage("--endpoint and --served-model need each other")
    if options.endpoint and options.text:
        options.wrong_usage("--endpoint is for --tasks, not for --text")
    measures = measures_of(options)
    import torch

    from squeeze10_quantizer.evaluation import evaluate_model, evaluate_served, evaluation_lines

    if options.endpoint:
        result = evaluate_served(options.endpoint, options.served_model, options.model, measures)
    else:
        dtype, device = getattr(torch, options.dtype), device_of(options.device)
        result = evaluate_model(options.model, options.against, measures, dtype, device)
    print(json.dumps(result) if options.json else "\n".join(evaluation_lines(result)))


def measures_of(options: argparse.Namespace) -> "Measures":
    """What the options ask to measure; they may not ask for nothing."""
    if not (options.text or options.tasks):
        options.wrong_usage("one of --text and --tasks is required")
    if bool(options.tasks) != bool(options.task_data):
        options.wrong_usage("--tasks and --task-data need each other")
    if options.batch < 1:
        raise BadInput(f"--batch must be at least 1; got {options.batch}.")
    from squeeze10_quantizer.measures import Measures

    return Measures(
        options.text,
        options.tasks,
        options.task_data,
        context=options.window,
        max_tokens=options.max_tokens,
        batch=options.batch,
    )


def ablate(options: argparse.Namespace) -> None:
    """Print the paper's tables as they come out on this model."""
    measures = measures_of(options)
    from squeeze10_quantizer.ablation import Plan, ablate
    from squeeze10_quantizer.ablation_report import render
    from squeeze10_quantizer.recipe import Recipe

    masks: list[Mask] = ["columns", "elements"] if options.mask == "both" else [options.mask]
    names = ("salient_ratio", "staged", "samples", "context", "seed", "tune", "tune_steps")
    base = Recipe(mask=masks[0], pbar=True, fias=True, **{name: getattr(options, name) for name in names})
    plan = Plan(options.table, masks, base, options.calibration)
    results = ablate(options.model, options.out, plan, measures, device_of(options.device), command_of(options))
    print(json.dumps(results) if options.json else render(results), end="\n" if options.json else "")


def generate(options: argparse.Namespace) -> None:
    """Write text."""
    from squeeze10_quantizer.generation import generate_text

    names = ("tokens", "context", "batch", "chats", "temperature", "seed")
    fields = {name: getattr(options, name) for name in names}
    written = generate_text(options.model, options.out, options.text, device=device_of(options.device), **fields)
    print(f"{options.out}: {written} tokens")


def verify(options: argparse.Namespace) -> None:
    """Check a checkpoint."""
    from squeeze10_quantizer.inspection import verify_checkpoint

    count = verify_checkpoint(options.checkpoint)
    print(f"{options.checkpoint}: {count} tensors, all as they should be")


def dequantize(options: argparse.Namespace) -> None:
    """Write the plain model."""
    from squeeze10_quantizer.export_dense import dequantize_checkpoint

    dequantize_checkpoint(options.checkpoint, options.out)
    print(f"{options.out}: plain bf16 model")


def doctor(options: argparse.Namespace) -> int:
    """Print what was found, a line each; 69 if serving does not work here."""
    from squeeze10_quantizer.doctor import examine

    well = True
    for finding in examine(device_of(options.device)):
        well = well and finding.well
        print(f"{'ok  ' if finding.well else 'FAIL'} {finding.what}: {finding.found}", flush=True)
        if finding.advice:
            print(f"     {finding.advice}", flush=True)
    return 0 if well else UNAVAILABLE


def demo_model(options: argparse.Namespace) -> None:
    """Write the demo model."""
    from squeeze10_quantizer.demo_model import write_demo_model

    write_demo_model(options.out)
    print(f"{options.out}: SmolLM2-135M-Instruct")


if __name__ == "__main__":
    sys.exit(main())
