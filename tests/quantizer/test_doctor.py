"""`squeeze10 doctor` sees what would keep a server from starting, or make it answer nonsense."""

import pytest

from squeeze10_quantizer import doctor
from squeeze10_quantizer.cli import UNAVAILABLE, main


def test_all_is_well_where_the_tests_run(capsys: pytest.CaptureFixture[str]) -> None:
    """A real vLLM in a process of its own takes the plugin; the kernels of this machine compute what they should."""
    code = main(["doctor", "--device", "cpu"])

    said = capsys.readouterr().out
    assert code == 0, said
    assert "ok   vllm: knows squeeze10" in said
    assert "ok   plugin: squeeze10_vllm:register" in said
    assert "ok   kernels: relative error" in said
    assert "FAIL" not in said


def test_a_kernel_that_computes_something_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = doctor.multiply
    monkeypatch.setattr(
        doctor, "multiply", lambda x, layer: right(x, layer).roll(1, 0) if len(x) == 16 else right(x, layer)
    )
    monkeypatch.setattr(doctor, "find_registration", lambda: doctor.Finding("vllm", "not asked"))

    code = main(["doctor", "--device", "cpu"])

    said = capsys.readouterr().out
    assert code == UNAVAILABLE
    assert "FAIL kernels: relative error" in said
    assert "do not serve here" in said


def test_a_plugin_without_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "entry_points", lambda **_: [])

    found = doctor.find_plugin()

    assert not found.well
    assert "pip" in found.advice


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        pytest.param("raise ImportError('libcudart.so.13 is missing')", "libcudart.so.13 is missing", id="broken"),
        pytest.param("import sys; sys.exit(3)", "no message", id="silent"),
    ],
)
def test_a_vllm_that_does_not_start(code: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "REGISTRATION", code)

    found = doctor.find_registration()

    assert not found.well
    assert reason in found.found


def test_a_vllm_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "REGISTRATION", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "REGISTRATION_SECONDS", 0.5)

    assert not doctor.find_registration().well


def test_no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda _: None)

    found = doctor.find_registration()

    assert not found.well
    assert found.found == "not installed"
