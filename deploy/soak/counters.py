"""What a vLLM server says of itself at /metrics, and whether it comes to rest."""

import re
import time
import urllib.request
from typing import Final

REST: Final = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
"""Zero when nobody asks."""


def read_counters(base_url: str) -> dict[str, float]:
    """The counters of `REST`, summed over engines.

    Args:
        base_url: The OpenAI API, which ends in /v1.
    """
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/metrics", timeout=30) as reply:
        text = reply.read().decode()
    values = {name: re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE) for name in REST}
    missing = [name for name, found in values.items() if not found]
    if missing:
        raise RuntimeError(f"/metrics has no {', '.join(missing)}: this vLLM names its counters otherwise.")
    return {name: sum(map(float, found)) for name, found in values.items()}


def wait_for_rest(base_url: str, limit_s: float = 60) -> dict[str, float]:
    """The counters that are still not zero after `limit_s`, empty once all are; vLLM looks at times, not at once."""
    deadline = time.monotonic() + limit_s
    while busy := {name: value for name, value in read_counters(base_url).items() if value}:
        if time.monotonic() > deadline:
            return busy
        time.sleep(0.5)
    return {}
