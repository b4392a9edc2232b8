"""The command `squeeze10`.

Exit codes: 0 done, 2 wrong usage, 65 bad data, 69 serving does not work here (`doctor`), 74 input/output error,
75 stopped and resumable.
"""

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from squeeze10_kernels import BadInput

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
        return options.run(options) or 0
    except BadInput as error:
        return fail(str(error), BAD_DATA)
    except OSError as error:
        return fail(f"Reading or writing failed: {error}.", IO_ERROR)
    except KeyboardInterrupt:
        return fail("Stopped. The same command takes up a quantization where it stopped.", STOPPED)


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
    add_quantize(commands)
    add_inspect(commands)
    add_eval(commands)
    command = add_command(commands, "verify", verify, "check every file, tensor and sum of a checkpoint")
    command.add_argument("checkpoint", type=Path, metavar="CKPT")
    command = add_command(commands, "dequantize", dequantize, "write a checkpoint as a plain bf16 model directory")
    command.add_argument("checkpoint", type=Path, metavar="CKPT")
    command.add_argument("out", type=Path, metavar="OUT")
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


def add_quantize(commands: Any) -> None:
    """`squeeze10 quantize`; defaults stand in `Recipe`."""
    command = add_command(
        commands, "quantize", quantize, "quantize a model directory; repeat the command to go on after a stop"
    )
    command.add_argument("model", type=Path, metavar="MODEL", help="LLaMA-family Hugging Face directory (safetensors)")
    command.add_argument("out", type=Path, metavar="OUT", help="checkpoint directory to write; must not exist")
    command.add_argument(
        "--mask",
        choices=("columns", "elements"),
        default="columns",
        help="4-bit weights: whole input channels (1.6 bits), or any element (the paper; 2.6 bits)",
    )
    command.add_argument("--salient-ratio", type=float, default=0.2, help="share of 4-bit weights, 0 to 1")
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
    switch = argparse.BooleanOptionalAction
    command.add_argument(
        "--fias",
        action=switch,
        default=True,
        help="calibrate on the original model's activations (paper 4.3)",
    )
    command.add_argument(
        "--pbar", action=switch, default=True, help="count activation ranges in the salience (paper Eq. 8)"
    )
    command.add_argument(
        "--staged",
        action=switch,
        default=False,
        help="round to 4 bits first (paper 4.1); costs accuracy, see LOG.md",
    )
    command.add_argument("--compensate", action=switch, default=True, help="compensate rounding errors (GPTQ)")
    command.add_argument("--pbar-weight", type=float, default=3e-4, help="λ of Eq. 8")
    command.add_argument("--pbar-tokens", type=int, default=4096, help="tokens over which output ranges are taken")
    command.add_argument("--damp-ratio", type=float, default=0.01, help="damping, share of the mean diagonal")
    command.add_argument(
        "--chunks",
        type=int,
        choices=(1, 2, 4, 8),
        default=None,
        help="largest tensor-parallel size; default: the largest that the shapes allow",
    )
    add_device(command)


def add_inspect(commands: Any) -> None:
    """`squeeze10 inspect`."""
    command = add_command(commands, "inspect", inspect, "say a checkpoint's real bits and the error of every layer")
    command.add_argument("checkpoint", type=Path, metavar="CKPT")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def add_eval(commands: Any) -> None:
    """`squeeze10 eval`."""
    command = add_command(commands, "eval", evaluate, "perplexity of a text under a checkpoint or a plain model")
    command.add_argument("model", type=Path, metavar="CKPT_OR_MODEL")
    command.add_argument("--text", type=Path, required=True, metavar="FILE", help="UTF-8 text")
    command.add_argument("--context", type=int, default=2048, help="tokens of a window; windows do not overlap")
    command.add_argument("--max-tokens", type=int, default=None, help="read only the first tokens of the text")
    command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    add_device(command)


def add_device(command: argparse.ArgumentParser) -> None:
    """`--device`."""
    command.add_argument("--device", default="auto", help="cpu, cuda or cuda:N; auto takes a GPU if there is one")


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
    from squeeze10_quantizer.quantize import model_name, quantize
    from squeeze10_quantizer.recipe import Recipe

    fields = {name: getattr(options, name) for name in Recipe.__dataclass_fields__}
    names = {options.model: model_name(options.model), options.out: "OUT"}
    command = shlex.join(["squeeze10", *(names.get(Path(word), word) for word in options.words)])
    quantize(options.model, options.out, Recipe(**fields), options.calibration, device_of(options.device), command)
    print_summary(options.out)


def inspect(options: argparse.Namespace) -> None:
    """Print a checkpoint's bits."""
    from squeeze10_quantizer.inspection import inspect_checkpoint

    if options.json:
        print(json.dumps(inspect_checkpoint(options.checkpoint), indent=2))
        return
    for layer in inspect_checkpoint(options.checkpoint)["layers"]:
        error = layer["relative_output_error"]
        shown = "unknown" if error is None else f"{error:.4f}"
        print(f"{layer['name']:40} {layer['shape']!s:16} {layer['bits']:.3f} bits, relative output error {shown}")
    print_summary(options.checkpoint)


def print_summary(path: Path) -> None:
    """One line on a checkpoint."""
    from squeeze10_quantizer.inspection import inspect_checkpoint

    summary = inspect_checkpoint(path)
    print(
        f"{path}: {summary['bits_per_weight']:.3f} bits per weight in the linear layers, "
        f"{summary['model_bits_per_weight']:.3f} in the whole model; "
        f"{summary['salient_ratio']:.1%} salient, mask {summary['mask']}"
    )


def evaluate(options: argparse.Namespace) -> None:
    """Print a perplexity."""
    import torch

    from squeeze10_quantizer.perplexity import evaluate_text

    result = evaluate_text(
        options.model,
        options.text,
        context=options.context,
        max_tokens=options.max_tokens,
        dtype=getattr(torch, options.dtype),
        device=device_of(options.device),
    )
    line = json.dumps(result) if options.json else f"perplexity {result['perplexity']:.4f}, {result['tokens']} tokens"
    print(line)


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
