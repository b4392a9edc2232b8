"""register() runs in every vLLM process of every user: it must be light and must never raise."""

import logging
import subprocess
import sys

import pytest

import squeeze10_vllm
from squeeze10_quantizer import doctor
from squeeze10_vllm.versions import version_warning


def test_import_is_light() -> None:
    """The CLI of vLLM imports the plugin before it knows the model."""
    code = "import sys, squeeze10_vllm; print([m for m in ('torch', 'vllm', 'triton') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_register_leaves_layers_and_ops_alone() -> None:
    """register() imports what vLLM needs to know the name, and no linear layer or kernel."""
    code = (
        "import sys, squeeze10_vllm; squeeze10_vllm.register(); squeeze10_vllm.register();"
        "from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS as methods;"
        "print(methods.count('squeeze10'), 'squeeze10_vllm.linear' in sys.modules, 'squeeze10_vllm.op' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith("1 False False")


def test_unknown_vllm_is_logged_and_not_raised(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A vLLM without our entry points still serves its other users, and the log says what is wrong."""
    monkeypatch.setitem(sys.modules, "vllm.model_executor.layers.quantization", None)
    monkeypatch.setattr("squeeze10_vllm.versions.version", lambda name: "0.99.1")
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)

    squeeze10_vllm.register()

    message = caplog.records[-1].getMessage()
    assert "vLLM 0.26 to 0.33" in message
    assert "vLLM 0.99.1" in message


@pytest.mark.parametrize(
    ("found", "known"),
    [
        ("0.26.0", True),
        ("0.32.0+cpu", True),
        ("0.33.1", True),
        ("0.25.3", False),
        ("0.34.0", False),
        ("1.0.0", False),
        ("unknown", False),
    ],
)
def test_version_range(monkeypatch: pytest.MonkeyPatch, found: str, known: bool) -> None:
    monkeypatch.setattr("squeeze10_vllm.versions.version", lambda name: found)
    warning = version_warning()
    assert (warning is None) == known
    assert known or found in str(warning)


def test_doctor_names_a_plugin_that_vllm_was_told_to_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM itself says "Unknown quantization method", whatever the reason; the entry point is there."""
    monkeypatch.setenv("VLLM_PLUGINS", "another,third")

    found = doctor.find_registration()

    assert doctor.find_plugin().well
    assert not found.well
    assert "squeeze10" in found.found
