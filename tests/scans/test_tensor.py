"""The tensor fit against that of dipy."""

from __future__ import annotations

import numpy as np
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel

from tripq.scans.scan import B_REFERENCE
from tripq.scans.tensor import main_directions


def test_main_directions_are_those_of_dipy() -> None:
    """Also where the signal is 0, above b0, or noise."""
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(20, 3))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    unit[0] = 0
    b_values = np.array([0, *9 * [700], *10 * [1400]], dtype=float)
    fibre = rng.normal(size=(300, 3))
    fibre /= np.linalg.norm(fibre, axis=1, keepdims=True)
    decay = b_values * (2e-4 + 1.4e-3 * (fibre @ unit.T) ** 2)
    signal = np.exp(-decay).astype(np.float32)
    signal[100:200] *= rng.uniform(0.5, 2.5, size=(100, 20)).astype(np.float32)
    signal[200:] = rng.uniform(-0.1, 1, size=(100, 20)).clip(0)

    fa, direction = main_directions(signal, np.sqrt(b_values / B_REFERENCE)[:, None] * unit)

    fit = TensorModel(gradient_table(b_values, bvecs=unit), fit_method="LS").fit(signal)
    np.testing.assert_allclose(fa, fit.fa, atol=1e-9)
    np.testing.assert_allclose((direction * fit.evecs[..., 0]).sum(1) ** 2, 1, atol=1e-9)
    np.testing.assert_allclose((direction[:100] * fibre[:100]).sum(1) ** 2, 1, atol=1e-5)
