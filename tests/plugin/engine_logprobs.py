"""Run vLLM offline on one prompt and print its tokens and log probabilities: DIRECTORY DTYPE TOKENS [KEY=VALUE].

A script, because vLLM starts its workers from a fresh interpreter that imports `__main__`.
"""

import json
import sys

from engine_process import end_if_it_hangs, llm_options

end_if_it_hangs()


def main() -> None:
    """`TOKENS` is the prompt, comma separated; further arguments go to `vllm.LLM`, as JSON values."""
    from vllm import LLM, SamplingParams

    directory, dtype, tokens, *options = sys.argv[1:]
    settings = llm_options(options)
    prompt = [int(token) for token in tokens.split(",")]
    model = LLM(directory, dtype=dtype, max_model_len=256, **settings)
    sampling = SamplingParams(max_tokens=8, temperature=0, prompt_logprobs=0, ignore_eos=True)
    (output,) = model.generate([{"prompt_token_ids": prompt}], sampling)
    logprobs = [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], prompt[1:], strict=True)]
    print("RESULT", json.dumps({"logprobs": logprobs, "tokens": list(output.outputs[0].token_ids)}))


if __name__ == "__main__":
    main()
