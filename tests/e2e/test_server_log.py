"""Whoever starts a server that fails reads one line of why, and not vLLM's last one."""

from pathlib import Path

import pytest
from vllm_server import cause

ENGINE = """\
(Worker pid=7) ERROR 11-24 23:59:59 [multiproc_executor.py:953]     raise BadInput(
(Worker pid=7) ERROR 11-24 23:59:59 [multiproc_executor.py:953] squeeze10_kernels.errors.BadInput: too many ranks.
Traceback (most recent call last):
    raise RuntimeError(
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
CONFIG = """\
pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig
  Value error, squeeze10 serves LlamaForCausalLM. [type=value_error, input_type=ArgsKwargs]
    For further information visit https://errors.pydantic.dev/2/v/value_error
"""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param(ENGINE, "squeeze10_kernels.errors.BadInput: too many ranks.", id="engine"),
        pytest.param(CONFIG, "Value error, squeeze10 serves LlamaForCausalLM.", id="config"),
        pytest.param("INFO: all is well\n", "the log names none", id="nothing"),
    ],
)
def test_the_cause_is_found_above_the_last_lines(text: str, sentence: str, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(text)

    assert cause(log).startswith(sentence)
