"""A leak is told from noise and from warm-up: the soak's verdict on memory."""

import pytest
import torch
from soak.load_server import ALLOWANCE, MIB, SAMPLE_S
from soak.slope import fit_slope

HALF_HOUR = [SAMPLE_S * index for index in range(360)]


def memory(leak: float, noise: float, seed: int) -> list[float]:
    """Half an hour of a server that warms up, wavers for a minute at a time, and leaks so many bytes per second."""
    generator = torch.Generator().manual_seed(seed)
    waver = torch.randn(30, generator=generator, dtype=torch.float64).repeat_interleave(12) * noise
    return [
        3000 * MIB + 300 * MIB * min(at / 300, 1) + leak * at + float(waver[index])
        for index, at in enumerate(HALF_HOUR)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_of_a_mebibyte_a_minute_shows(seed: int) -> None:
    slope = fit_slope(HALF_HOUR, memory(MIB / 60, MIB, seed))

    assert slope.exceeds(ALLOWANCE)
    assert slope.value == pytest.approx(MIB / 60, rel=0.3)


def test_noise_is_no_leak() -> None:
    """At 95 % on both sides one in forty may be taken for one, if nothing were allowed."""
    accused = sum(fit_slope(HALF_HOUR, memory(0, 5 * MIB, seed)).exceeds(0) for seed in range(200))

    assert accused <= 12


def test_a_line_has_its_slope_and_no_doubt() -> None:
    slope = fit_slope(HALF_HOUR, [7 * at for at in HALF_HOUR])

    assert slope.value == pytest.approx(7)
    assert slope.error == pytest.approx(0, abs=1e-9)
