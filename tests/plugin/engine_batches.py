"""Run vLLM offline on prompts, each alone and all at once: DIRECTORY FILE REPETITIONS [KEY=VALUE].

A script, as engine_logprobs.py. `FILE` holds the prompts' tokens as JSON; the first one is asked so many times more.
Further arguments go to `vllm.LLM`, as JSON values.
"""

import json
import sys
from pathlib import Path
from typing import Any

from engine_process import end_if_it_hangs, llm_options

end_if_it_hangs()

TOKENS = 16


def spoken(output: Any) -> dict[str, list[Any]]:
    """The tokens of an answer, and the log-probabilities of the prompt's after the first and of these."""
    ids, entries = list(output.prompt_token_ids)[1:], list(output.prompt_logprobs)[1:]
    (answer,) = output.outputs
    ids, entries = [*ids, *answer.token_ids], [*entries, *answer.logprobs]
    logprobs = [entry[token].logprob for entry, token in zip(entries, ids, strict=True)]
    return {"tokens": list(answer.token_ids), "logprobs": logprobs}


def main() -> None:
    from vllm import LLM, SamplingParams

    directory, file, repetitions, *options = sys.argv[1:]
    settings = llm_options(options)
    prompts = [{"prompt_token_ids": ids} for ids in json.loads(Path(file).read_text())]
    model = LLM(directory, dtype="bfloat16", max_model_len=256, enable_prefix_caching=False, **settings)
    sampling = SamplingParams(max_tokens=TOKENS, temperature=0, logprobs=0, prompt_logprobs=0, ignore_eos=True)
    alone = [spoken(model.generate([prompt], sampling)[0]) for prompt in prompts]
    together = [spoken(output) for output in model.generate(prompts, sampling)]
    again = [spoken(model.generate(prompts[:1], sampling)[0]) for _ in range(int(repetitions))]
    print("RESULT", json.dumps({"alone": alone, "together": together, "again": again}))


if __name__ == "__main__":
    main()
