"""Start one of this folder's scripts, which run vLLM offline in a process of their own, and read its result."""

import faulthandler
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LIMIT_S = 600
HANG_S = 500
"""After which a process of a script says where it is, and ends."""


def end_if_it_hangs() -> None:
    """Called where a script is imported, so that vLLM's workers, which import it anew, are watched too."""
    faulthandler.dump_traceback_later(HANG_S, exit=True)


def llm_options(words: list[str]) -> dict[str, Any]:
    """Arguments of `vllm.LLM` from KEY=JSON."""
    return {key: json.loads(value) for key, value in (word.split("=", 1) for word in words)}


def run_script(name: str, *arguments: object, **options: Any) -> tuple[Any, str]:
    """What a script prints after RESULT, and all that it prints; options go to `vllm.LLM`."""
    settings = [f"{key}={json.dumps(value)}" for key, value in options.items()]
    command = [sys.executable, str(Path(__file__).with_name(name)), *map(str, arguments), *settings]
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    log = result.stdout + result.stderr
    assert result.returncode == 0, log[-8000:]
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT ")), log
