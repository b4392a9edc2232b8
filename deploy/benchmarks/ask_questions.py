"""Ask a model the fixed questions in questions.txt: greedy answers, one line each.

python deploy/benchmarks/ask_questions.py CKPT_OR_MODEL [--dtype float32]
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from squeeze10_quantizer.loading import load_model

QUESTIONS = Path(__file__).with_name("questions.txt")
ANSWER_TOKENS = 40


def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Each question and what the model says to it."""
    for question in QUESTIONS.read_text().splitlines():
        chat = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**inputs.to(model.device), max_new_tokens=ANSWER_TOKENS, do_sample=False)
        yield f"{question} {tokenizer.decode(out[0][inputs['input_ids'].shape[1] :], skip_special_tokens=True)!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    model = load_model(options.model, getattr(torch, options.dtype), torch.device(options.device))
    for line in answers(model, AutoTokenizer.from_pretrained(options.model)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
