"""The one numeric tolerance of the tests."""

import torch


def assert_close(actual: torch.Tensor, expected: torch.Tensor, rms: float) -> None:
    """Relative RMS error of `actual` at most `rms`: one number that means the same at every scale.

    Shapes must agree, and so must the places of NaN and infinity: there are none in `expected`.
    """
    assert actual.shape == expected.shape, f"shape {list(actual.shape)}, expected {list(expected.shape)}"
    assert expected.isfinite().all(), "the expected values must be finite"
    assert actual.isfinite().all(), f"{int((~actual.isfinite()).sum())} values are not finite"
    difference = (actual.double() - expected.double()).square().sum().sqrt()
    scale = expected.double().square().sum().sqrt()
    error = float(difference / scale) if scale else float(difference)
    assert error <= rms, f"relative RMS error {error:.3g}, allowed {rms:.3g}"
