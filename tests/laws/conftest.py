"""A small head on disk, and the program that segments it: what the laws are tried on.

The head is simulated, so that its signal means what a scan's does, and segmented by the weights
that come with tripq, so that a map is not trivial.  All goes through files: image, tables, mask,
and the map that `tripq segment` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from _pytest.mark import ParameterSet
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from tests.conftest import built
from tests.scans.conftest import Scan
from tripq.commands import app, segmenting
from tripq.simulate import Anatomy, GradientTable
from tripq.tasks.lesions.simulate import LesionStatistics, simulate_subject


def sampled(numbers: Iterable[int], handful: Collection[int]) -> list[ParameterSet]:
    """Numbers for a test; those that are not in the handful are left to `make test-all`."""
    return [pytest.param(n, marks=() if n in handful else pytest.mark.exhaustive) for n in numbers]


ROUNDING = 5e-6
"""How far a probability may be off where sums are taken in another order.

float32 carries 6e-8 of a number.  A logit is up to 23 in size here, and five layers make it, by
sums of up to 27 x 104 products: some ten roundings add up, 1.8e-6 as measured.  This leaves a
factor of 2.7 for other processors; a wrong table moves the map by 0.2.
"""

PLAIN = np.diag([-2.0, 2.0, 2.0])
"""Voxel axes of 2 mm, from right to left as scanners store them."""

OBLIQUE = Rotation.from_rotvec([0.2, -0.3, 0.4]).as_matrix() @ np.diag([2.0, 2.0, 2.0])
"""Along no axis of the world, and from left to right: its determinant is positive."""


@dataclass(frozen=True, eq=False)
class Head:
    """A scan with the voxels of its brain, (X, Y, Z); outside there is noise."""

    scan: Scan
    brain: NDArray[np.bool_]

    def stored(self, axes, signs) -> Head:
        """The same head with the axes of its file permuted and flipped; the affine tells so."""
        brain = replace(self.scan, data=self.brain).reoriented(axes, signs).data
        return Head(self.scan.reoriented(axes, signs), brain)

    def write(self, folder: Path, frame: str = "fsl", name: str = "dwi.nii.gz") -> Path:
        """Write image, bval, bvec and ``mask.nii.gz``, as NIfTI-1: the affine is in float32."""
        folder.mkdir(parents=True, exist_ok=True)
        mask = nib.Nifti1Image(self.brain.astype(np.uint8), self.scan.affine)
        mask.to_filename(folder / "mask.nii.gz")
        return self.scan.write(folder, frame, name, nib.Nifti1Image)


@cache
def make_head(
    linear: str = "plain", shape: tuple[int, int, int] = (15, 13, 14), edge: float = 2.0
) -> Head:
    """An egg of white matter with bent fibres, a cortex, a ventricle and two lesions.

    Parameters
    ----------
    linear : {"plain", "oblique"}
        The axes of its grid.
    shape : tuple of int
        Its axes differ in length, so that they cannot be taken for one another.
    edge : float
        Of its voxels in mm.
    """
    index = np.indices(shape).astype(float)
    centre = (np.array(shape) - 1) / 2
    x, y, z = ((i - c) / (c + 0.3) for i, c in zip(index, centre, strict=True))
    radius = np.sqrt(x**2 + y**2 + z**2)
    csf = 4 * (x - 0.1) ** 2 + 9 * (y + 0.2) ** 2 + 6 * z**2 < 0.25
    gm = (radius > 0.8) & ~csf
    first, second = (x - 0.5, y - 0.3, z + 0.2), (x + 0.5, y - 0.3, z - 0.3)
    lesion = np.logical_or(*(sum(d**2 for d in at) < 0.07 for at in (first, second)))
    angle = 1.2 * x + 0.5 * z
    zero = np.zeros(shape)
    fibres = [(np.cos(angle), np.sin(angle), zero), (zero, np.cos(angle), np.sin(angle))]
    affine = np.eye(4)
    affine[:3, :3] = {"plain": PLAIN, "oblique": OBLIQUE}[linear] * edge / 2
    affine[:3, 3] = (3.0, -20.0, 11.0) - affine[:3, :3] @ centre
    anatomy = Anatomy(
        wm=(~gm & ~csf).astype(np.float32),
        gm=gm.astype(np.float32),
        csf=csf.astype(np.float32),
        mask=radius < 1,
        directions=np.stack([np.stack(f, axis=-1) for f in fibres], axis=-2).astype(np.float32),
        weights=np.broadcast_to(np.float32([0.5, 0.2]), (*shape, 2)).copy(),
        affine=affine,
    )
    table = GradientTable.from_shells([1000.0, 2000.0], [12, 6], n_b0=1)
    subject = simulate_subject(
        anatomy,
        table,
        seed=1,
        snr=30.0,
        deformation=0.0,
        lesion_coverage=lesion.astype(np.float32),
        grid=anatomy.grid,
        statistics=LesionStatistics(severity=(0.5, 0.5)),
    )
    dwi = subject.dwi
    rng = np.random.default_rng(2)
    data = rng.uniform(1, 20, (*shape, len(table) + 1)).astype(np.float32)
    # A second b0, in the middle: the reader averages them.
    data[dwi.mask] = np.insert(dwi.signal, 9, rng.normal(1, 0.03, len(dwi.b0)), axis=1)
    data[dwi.mask] *= dwi.b0[:, None]
    scan = Scan(
        data,
        dwi.affine,
        np.insert(table.b_values, 9, 0.0),
        np.insert(table.directions, 9, 0.0, axis=0),
    )
    return Head(scan, dwi.mask)


# -- the program ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Map:
    """A map that the program wrote, on its grid."""

    volume: NDArray[np.float32]
    affine: NDArray[np.float64]

    @classmethod
    def read(cls, path: Path) -> Map:
        image = nib.load(path)
        return cls(np.asarray(image.dataobj), image.affine)

    def at(self, affine: NDArray[np.float64]) -> NDArray[np.float32]:
        """The values at the voxels of another affine, which must be those of this map: (X, Y, Z).

        By the places of the voxels in the world, so that nothing that is tested is used.
        """
        shape = np.array(self.volume.shape)
        # The axes of the other grid are those of this one, in another order.
        order = np.abs(np.linalg.inv(affine)[:3, :3] @ self.affine[:3, :3]).argmax(axis=1)
        other = tuple(shape[order].tolist())
        here, there = (
            nib.affines.apply_affine(a, np.indices(s).reshape(3, -1).T)
            for a, s in ((self.affine, self.volume.shape), (affine, other))
        )
        distance, partner = cKDTree(here).query(there)
        assert distance.max() < 1e-3, "the grids are at other places in the world"
        return self.volume.ravel()[partner].reshape(other)


def tripq(*arguments: object) -> None:
    """Run the command in this process; it must succeed."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output


def segment(head: Head, folder: Path, *options: object, frame: str = "fsl") -> Map:
    """Write a head, run ``tripq segment``, and read its map."""
    scan = head.write(folder, frame)
    mask = ("--mask", folder / "mask.nii.gz")
    tripq("segment", scan, *mask, "--frame", frame, "-o", folder, "--device", "cpu", *options)
    return Map.read(folder / "dwi_label-lesion_probseg.nii.gz")


def assert_same(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Equal but for rounding, in every voxel, and no constant map, which would obey every law."""
    assert np.ptp(expected[expected > 0]) > 0.1
    assert expected[expected > 0].std() > 0.01
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Leave out what takes longer than all else: pages, and reading the network every time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmenting, "load_model", cache(segmenting.load_model))
        patch.setattr("typer.testing._get_command", built, raising=False)
        patch.setattr(
            segmenting,
            "write_subject_report",
            lambda path, *arguments, **options: path.write_text("a page"),
        )
        yield


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Head], Map]:
    """The map of a head as it is written first: what every other map of it is held to."""
    return cache(lambda head: segment(head, tmp_path_factory.mktemp("first")))
