"""Run vLLM offline with one of its features and print what it says: DIRECTORY FEATURE TOKENS [KEY=VALUE].

A script, as engine_logprobs.py. `TOKENS` is the prompt of two greedy requests, before and after something was
done; further arguments go to `vllm.LLM`, as JSON values.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine_process import end_if_it_hangs, llm_options

end_if_it_hangs()

SETTINGS: dict[str, dict[str, Any]] = {
    "reload": {},
    "repeat": {"enable_prefix_caching": True},
    "sleep1": {"enable_sleep_mode": True},
    "sleep2": {"enable_sleep_mode": True},
    "chunks": {"max_num_batched_tokens": 16, "enable_chunked_prefill": True, "max_num_seqs": 4},
    "speculation": {
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3},
    },
    "lora": {"enable_lora": True, "max_lora_rank": 8},
}


def reload(model: Any, weights_path: str | None) -> None:
    model.collective_rpc("reload_weights", kwargs={"weights_path": weights_path})


def sleep1(model: Any, _: str | None) -> None:
    model.sleep(level=1)
    model.wake_up()


def sleep2(model: Any, _: str | None) -> None:
    """The weights are thrown away and read again."""
    model.sleep(level=2)
    model.wake_up(tags=["weights"])
    model.collective_rpc("reload_weights")
    model.wake_up(tags=["kv_cache"])


def nothing(_: Any, __: str | None) -> None:
    """Chunks and speculation hold from the start; a repetition finds its prefix in the cache."""


BETWEEN: dict[str, Callable[[Any, str | None], None]] = {"reload": reload, "sleep1": sleep1, "sleep2": sleep2}


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    directory, feature, tokens, *options = sys.argv[1:]
    prompt = [int(token) for token in tokens.split(",")]
    settings = llm_options(options)
    weights_path = settings.pop("weights_path", None)
    model = LLM(directory, max_model_len=256, **(SETTINGS[feature] | settings))
    sampling = SamplingParams(max_tokens=24, temperature=0, prompt_logprobs=0, ignore_eos=True)

    def answer(**more: Any) -> dict[str, list[float]]:
        (output,) = model.generate([{"prompt_token_ids": prompt}], sampling, **more)
        entries = zip(output.prompt_logprobs[1:], prompt[1:], strict=True)
        logprobs = [entry[token].logprob for entry, token in entries]
        return {"tokens": list(output.outputs[0].token_ids), "logprobs": logprobs}

    before = answer()
    BETWEEN.get(feature, nothing)(model, weights_path)
    adapter = LoRARequest("adapter", 1, str(Path(directory, "adapter"))) if feature == "lora" else None
    print("RESULT", json.dumps({"before": before, "after": answer(lora_request=adapter)}))


if __name__ == "__main__":
    main()
