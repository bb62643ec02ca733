"""A scan in units of its response has the same signal of a fibre, whatever its diffusivities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tripq.scans import DWI, DWIError, write_dwi
from tripq.scans.response import Response, estimate_response, scale_by_response
from tripq.simulate import GradientTable
from tripq.training import Augmentation

FIBRES = Rotation.random(40, random_state=0).as_matrix()[:, 0]


def scan(axial: float, radial: float, *shells: tuple[float, int], fluid: int = 0) -> DWI:
    """Voxels with one fibre each, and voxels of fluid with noise."""
    table = GradientTable.from_shells([b for b, _ in shells], [n for _, n in shells])
    b, g = table.b_values, table.directions
    fibres = np.exp(-b * (radial + (axial - radial) * (FIBRES @ g.T) ** 2))
    rest = np.exp(-3e-3 * b) + np.random.default_rng(0).normal(0, 0.05, (fluid, len(b)))
    rest[:, 0] = 1
    signal = np.concatenate([fibres, rest]).astype(np.float32)
    return DWI(
        signal=signal,
        b_values=b,
        q=np.sqrt(b / 1000)[:, None] * g,
        mask=np.ones((len(signal), 1, 1), bool),
        affine=np.eye(4),
        b0=np.ones(len(signal), np.float32),
    )


@pytest.mark.parametrize(("axial", "radial"), [(1.1e-3, 2e-4), (1.9e-3, 5e-4)])
def test_the_response_has_the_diffusivities_of_fibres(axial: float, radial: float) -> None:
    found = estimate_response(scan(axial, radial, (1000.0, 12), fluid=60))
    assert (found.axial, found.radial) == pytest.approx((axial, radial), rel=1e-3)


def test_scaled_scans_have_the_same_function_of_q() -> None:
    for how in ((1.1e-3, 2e-4, (1000.0, 12)), (1.9e-3, 5e-4, (1500.0, 20))):
        scaled = scale_by_response(scan(*how))
        assert scaled.response is not None
        expected = np.exp(-((FIBRES @ scaled.q.T) ** 2))
        np.testing.assert_allclose(scaled.signal[: len(FIBRES)], expected, rtol=2e-3)


def test_the_largest_shell_is_kept_with_its_b_value() -> None:
    scaled = scale_by_response(scan(1.5e-3, 3e-4, (1000.0, 20), (2000.0, 12)))
    assert [(len(one), one.b_value) for one in scaled.shells] == [(20, 1000.0)]
    equal = scale_by_response(scan(1.5e-3, 3e-4, (1000.0, 12), (2000.0, 12)))
    assert [one.b_value for one in equal.shells] == [2000.0]


def test_a_scan_without_fibres_keeps_its_directions() -> None:
    water = scale_by_response(scan(1e-3, 1e-3, (1000.0, 12)))
    assert np.isfinite(water.signal).all()
    assert np.linalg.norm(water.q[1]) > 0.3
    assert Response(1e-3, 1e-3).difference > 0


def test_too_few_directions_are_an_error() -> None:
    dwi = scan(1.5e-3, 3e-4, (1000.0, 12))
    with pytest.raises(DWIError, match=r"5 directions: .* need 6"):
        scale_by_response(dwi.with_samples(np.arange(6)))
    with pytest.raises(DWIError, match="no direction is diffusion-weighted"):
        scale_by_response(dwi.with_samples(np.arange(1)))


def test_a_mask_without_white_matter_is_an_error() -> None:
    dwi = scan(1.5e-3, 3e-4, (1000.0, 12), fluid=50)
    fluid = np.arange(len(dwi.b0)) >= len(FIBRES)
    with pytest.raises(DWIError, match="Is the mask that of the brain"):
        scale_by_response(dwi.with_voxels(fluid[:, None, None]))


def test_a_scaled_scan_is_not_scaled_again_and_is_no_measurement(tmp_path: Path) -> None:
    scaled = scale_by_response(scan(1.5e-3, 3e-4, (1000.0, 12)))
    assert scale_by_response(scaled) is scaled
    with pytest.raises(DWIError, match="no measurement"):
        write_dwi(scaled, tmp_path / "dwi.nii.gz")


def test_noise_of_a_scaled_scan_is_scaled() -> None:
    """The augmentation adds the same noise before and after the scaling."""
    dwi = scan(1.5e-3, 3e-4, (3000.0, 30))
    scaled = scale_by_response(dwi)
    assert scaled.response is not None
    augment = Augmentation(noise=0.1, bias=0.0, b0_error=0.0, dropped=0.0)
    noisy, scaled_noisy = (
        augment(x, np.random.default_rng(0), np.random.default_rng(1)) for x in (dwi, scaled)
    )
    expected = noisy.signal[:, 1:] * scaled.response.attenuation(dwi.b_values)[1:]
    np.testing.assert_allclose(scaled_noisy.signal[:, 1:], expected, rtol=1e-5)
