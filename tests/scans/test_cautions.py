"""Scans that can be read and are not what they say: doubted; real scans are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.scans.test_coherence import make_rods, oblique
from tripq.scans import DWI, read_dwi
from tripq.scans.cautions import MAX_BRIGHTNESS, MIN_VARIATION, find_cautions


@pytest.fixture(scope="module")
def rods() -> DWI:
    """A scan with contrast from voxel to voxel."""
    made = make_rods(oblique())
    b0 = np.random.default_rng(1).uniform(200, 600, len(made.b0)).astype(np.float32)
    return replace(made, b0=b0)


def test_a_good_scan_is_not_doubted(rods: DWI) -> None:
    assert find_cautions(rods) == ()


@pytest.mark.parametrize("kept", [1, 3, 5, 6])
def test_repeated_directions_count_once(rods: DWI, kept: int) -> None:
    repeated = np.r_[0, 1 + np.arange(12) % kept]
    signs = np.r_[1, np.tile([1, -1], 6)][:, None]  # opposite directions are the same
    found = find_cautions(
        replace(rods, q=rods.q[repeated] * signs, signal=rods.signal[:, repeated])
    )
    if kept == 6:
        assert found == ()
    else:
        noun = "direction" if kept == 1 else "directions"
        (caution,) = found
        assert f"12 volumes of b = 1000 s/mm2 have {kept} different {noun} only" in caution


@pytest.mark.parametrize("weighted", range(1, 13))
def test_a_weighted_volume_in_the_place_of_b0_is_seen(rods: DWI, weighted: int) -> None:
    """The table says that the first volume is b0; in the image it is another."""
    order = np.arange(13)
    order[[0, weighted]] = order[[weighted, 0]]
    intensity = (rods.signal * rods.b0[:, None])[:, order]
    wrong = replace(rods, b0=intensity[:, 0], signal=intensity / intensity[:, :1])
    (caution,) = find_cautions(wrong)
    assert "diffusion-weighted volumes are not darker than b0" in caution
    assert "Are volumes and gradient table in the same order?" in caution


def test_b0_among_five_is_missed_by_none(rods: DWI) -> None:
    """One of five b0 volumes is taken for a weighted one, and that one for a b0."""
    intensity = rods.signal * rods.b0[:, None]
    b0 = (4 * intensity[:, 0] + intensity[:, 1]) / 5
    signal = np.c_[intensity[:, 0], intensity] / b0[:, None]
    signal[:, 1] = intensity[:, 0] / b0
    signal[:, 0] = 1
    wrong = replace(rods, b0=b0, signal=signal[:, :13])
    (caution,) = find_cautions(wrong)
    assert caution.startswith("1 of 12 diffusion-weighted volumes are not darker")


def test_copies_of_b0_are_no_weighted_volumes(rods: DWI) -> None:
    (caution,) = find_cautions(replace(rods, signal=np.ones_like(rods.signal)))
    assert "12 of 12 diffusion-weighted volumes are not darker than b0" in caution


def test_a_constant_image_is_no_brain(rods: DWI) -> None:
    signal = np.full_like(rods.signal, 0.5)
    signal[:, 0] = 1
    constant = replace(rods, signal=signal, b0=np.full_like(rods.b0, 300))
    (caution,) = find_cautions(constant)
    assert "The image is nearly constant" in caution
    noise = np.random.default_rng(2).normal(1, 0.02, signal.shape).astype(np.float32)
    (caution,) = find_cautions(replace(constant, signal=signal * noise))
    assert "The image is nearly constant" in caution


@pytest.mark.parametrize(
    "name",
    [
        "tractseg_example/Diffusion.nii.gz",
        "dcm_qa_uih/dti_tra_dir16_PA_6_134431.nii",
        "canon_61/3000_DTI_PA-ortho_cl.nii.gz",
        "canon_61/14000_DTI_PA-ortho-HT_cl.nii.gz",
        "uih_series/dti_tra_dir16_PA_rot_12_132222.nii.gz",
        "philips/pd_701_DTI_Biobank_2mm_MB3S2_EPI.nii.gz",
        "philips/ph_601_WIP_dti_ax.nii.gz",
        "mrtrix3_crop/derived_msmt_dwi.nii.gz",
    ],
)
def test_real_scans_are_not_doubted(name: str, shared_data: Path) -> None:
    """Not even with all the air around the head; and they are far from the thresholds."""
    dwi = read_dwi(shared_data / "real_dwi" / name)
    assert find_cautions(dwi) == ()
    b0 = dwi.b0.astype(np.float64)
    assert max(column @ b0 for column in dwi.signal.T[1:]) / b0.sum() < 0.5 < MAX_BRIGHTNESS
    assert b0.std() / b0.mean() > 0.25 > MIN_VARIATION
