"""Through files: the maps of a turned head are the turned maps, by Wigner's matrices."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation

from tests.commands.conftest import Call, call  # noqa: F401
from tests.laws.conftest import Head, make_head
from tests.laws.test_rotations import on_the_grid
from tests.strategies import CUBE
from tripq.networks import save_network
from tripq.so3.mrtrix import from_mrtrix, to_mrtrix
from tripq.tasks.fibres.names import FODF, PEAKS
from tripq.tasks.fibres.network import FibreNetwork
from tripq.testing import representation

pytestmark = pytest.mark.usefixtures("plain_pages")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = FibreNetwork(p_radius=3.0, p_features="3x0e + 2x2e")
    for weight in (network.bias, *network.start, *network.head.parameters()):
        torch.nn.init.normal_(weight)
    path = tmp_path / "fibres.safetensors"
    save_network(network, path, {"task": "fibres", "voxel_size_mm": "2"})
    return path


@pytest.mark.parametrize(("number", "frame"), [(1, "fsl"), (11, "voxel"), (18, "world")])
@pytest.mark.parametrize("linear", ["plain", "oblique"])
def test_a_turned_head_has_turned_distributions_and_peaks(
    call: Call,  # noqa: F811
    number: int,
    frame: str,
    linear: str,
    weights: Path,
    tmp_path: Path,
) -> None:
    """By rotations of the cube, which need no interpolation."""
    head, matrix = make_head(linear, (7, 6, 5), 4.0), CUBE["SO3"][number]
    to = np.abs(matrix).argmax(axis=0)
    orientation = np.stack([to, matrix[to, range(3)]], axis=1)

    def turn(volume: np.ndarray) -> np.ndarray:
        return apply_orientation(volume, orientation)

    def predicted(one: Head, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        scan = one.write(folder, frame)
        given = ("--mask", folder / "mask.nii.gz", "--weights", weights, "--frame", frame)
        done = call("predict", scan, *given, "--voxel-size", "4", "-o", folder)
        assert done.status == 0, done.stderr
        fodf, peaks = (nib.load(folder / f"dwi_{end}.nii.gz") for end in (FODF, PEAKS))
        return np.asarray(fodf.dataobj), np.asarray(peaks.dataobj)

    fodf, peaks = predicted(head, tmp_path / "head")
    turned_fodf, turned_peaks = predicted(on_the_grid(head, matrix, turn), tmp_path / "turned")
    axes = head.scan.affine[:3, :3]
    rotation = axes @ matrix @ np.linalg.inv(axes)
    wigner = representation("1x0e + 1x2e + 1x4e + 1x6e + 1x8e", rotation).numpy()
    expected = to_mrtrix(from_mrtrix(turn(fodf).astype(float)) @ wigner.T)
    for part in (slice(0, 1), slice(1, None)):  # what is isotropic is much larger
        size = np.abs(fodf[..., part]).max()
        np.testing.assert_allclose(
            turned_fodf[..., part], expected[..., part], atol=2e-5 * size, rtol=0
        )
    assert np.abs(turned_fodf - turn(fodf)).max() > 0.05 * size  # the law is about something

    first = turn(peaks)[..., :3] @ rotation.T
    there = first.any(axis=-1)
    assert there.any()
    across = np.linalg.norm(np.cross(first, turned_peaks[..., :3]), axis=-1)[there]
    along = np.abs((first * turned_peaks[..., :3]).sum(axis=-1))[there]
    assert np.median(np.degrees(np.arctan2(across, along))) < 0.05
