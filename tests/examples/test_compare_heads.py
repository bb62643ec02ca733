"""The quantiles that compare simulated with real heads."""

from __future__ import annotations

import numpy as np
import pytest

from tripq.scans import DWI
from tripq.simulate import default_anatomy


def scan_of(tensor: np.ndarray, noise: float) -> DWI:
    """A cube of one tensor, in mm2/s, with 30 directions at b = 1000 s/mm2."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((30, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    attenuation = np.exp(-1000 * np.einsum("qi,ij,qj->q", directions, tensor, directions))
    signal = np.concatenate([[1.0], attenuation]) + noise * rng.standard_normal((1000, 31))
    return DWI(
        signal=signal.astype(np.float32),
        b_values=np.array([0.0, *30 * [1000.0]]),
        q=np.concatenate([np.zeros((1, 3)), directions]),
        mask=np.ones((10, 10, 10), dtype=bool),
        affine=np.eye(4),
        b0=np.ones(1000, dtype=np.float32),
    )


def test_quantiles_are_those_of_the_tensor() -> None:
    from compare_heads import quantiles

    fa, md, noise = quantiles(scan_of(np.diag([1.7e-3, 0.3e-3, 0.3e-3]), 0.01))
    assert fa[2] == pytest.approx(0.8, abs=0.01)
    assert md[2] == pytest.approx(0.767, abs=0.01)
    assert noise[2] == pytest.approx(100, rel=0.1)  # S0 is 1
    for values in (fa, md, noise):
        assert (np.diff(values) > 0).all()


def test_the_table_has_the_lowest_and_highest_head() -> None:
    from compare_heads import QUANTILES, compare, quantiles, randomised

    heads = [quantiles(randomised(default_anatomy(5.0), seed)) for seed in (0, 1)]
    text = compare(heads, {"a real scan": np.full((3, len(QUANTILES)), 0.25)})
    first, rule, fa, md, noise = text.splitlines()
    assert first == "| quantity | lowest | median | highest | a real scan |"
    assert rule.count("---") == 5
    lowest, median, highest, real = (
        np.array(cell.split(), dtype=float) for cell in fa.strip("| ").split(" | ")[1:]
    )
    assert (lowest <= median).all()
    assert (median <= highest).all()
    assert np.unique(real) == [0.25]
    assert md.startswith("| MD")
    assert noise.endswith("| 0 0 0 0 0 |")
