r"""Do the gradient directions fit the image?  Fibres tell: they run on from voxel to voxel.

A table whose axes are flipped or exchanged turns each fibre but not the place of its neighbours, so
that fibres no longer point at those that continue them.  The fibre coherence index of Schilling et
al. ("A fiber coherence index for quality control of B-table orientation in diffusion MRI scans",
Magn Reson Imaging 58:82-89, 2019) counts how often they do: the pairs of neighbouring voxels (of
26) whose main directions both lie within 30 degrees of the line between their centres, each pair
with the sum of its fractional anisotropies (FA).  In voxels that are no cubes some directions have
more neighbours than others, and a wrong table that turns the fibres there would win.  So the sum is
divided by what it would be if every fibre that points at a neighbour were continued by it: the
index is the share of fibres, weighted by FA, that go on.

A direction and its opposite are the same, so that 4 flips (none, x, y, z) and 6 permutations of the
axes are all there are: 24 tables.  None has to be fitted again, as the tensor's axes turn with the
table.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel
from numpy.typing import NDArray

from tripq.scans.errors import DWIError
from tripq.scans.frames import Frame, orthogonal_part
from tripq.scans.scan import DWI
from tripq.scans.shells import TENSOR_DIRECTIONS, count_directions

MIN_FA = 0.3
"""Voxels with less fractional anisotropy have no fibre to follow; 0.2 to 0.3 bounds white matter.
"""

MAX_ANGLE = 30.0
"""Largest angle in degrees between a fibre and the line to the voxel that continues it."""

MIN_MARGIN = 0.05
"""By this share the best table must beat the next one; below, nothing can be said.

``perf/frame_check.py`` counts what this says of real and simulated scans with fewer directions,
fewer slices and more noise (docs/frames.md): the largest lead of a wrong table is 0.034.
"""

MIN_VOXELS = 500
"""Voxels with fibres that are needed to judge."""

TENSOR_B = 1600.0
"""The tensor is fitted up to this b-value in s/mm2; above, the signal does not fall as it says.

Where that leaves fewer than `TENSOR_DIRECTIONS`, the next shells are fitted, too: FA comes out
lower, but the main direction is where the signal is weakest, at any b-value."""

_AXES = "xyz"
_CHUNK = 50_000  # voxels whose tensors are fitted at once: dipy copies their signal


@dataclass(frozen=True)
class Change:
    """One of the 24 ways in which the axes of a table may be flipped and exchanged.

    Parameters
    ----------
    axes : tuple of int
        Which old component stands first, second and third.
    flip : int or None
        Which of the new components is negated.

    Examples
    --------
    >>> Change((1, 0, 2), 2)
    Change(y x -z)
    >>> Change((1, 0, 2), 2).matrix @ [1, 2, 3]
    array([ 2.,  1., -3.])
    """

    axes: tuple[int, int, int]
    flip: int | None = None

    @property
    def matrix(self) -> NDArray[np.float64]:
        """From old to new components, (3, 3)."""
        matrix = np.eye(3)[list(self.axes)]
        if self.flip is not None:
            matrix[self.flip] *= -1
        return matrix

    @property
    def is_none(self) -> bool:
        """Whether the table stays as it is."""
        return self == Change((0, 1, 2))

    def __str__(self) -> str:
        return " ".join(
            ("-" if place == self.flip else "") + _AXES[axis]
            for place, axis in enumerate(self.axes)
        )

    def __repr__(self) -> str:
        return f"Change({self})"


CHANGES = tuple(
    Change((axes[0], axes[1], axes[2]), flip)
    for axes, flip in product(permutations(range(3)), (None, 0, 1, 2))
)
"""All 24; the first is none."""


@dataclass(frozen=True)
class Coherence:
    """How well the fibres of a scan continue, with its table and with the 23 others.

    Parameters
    ----------
    indices : tuple of (Change, float)
        Changes of the components along the image axes, as stored, with their fibre coherence
        indices, between 0 and 1; the largest first.
    n_voxels : int
        Voxels with fibres.
    """

    indices: tuple[tuple[Change, float], ...]
    n_voxels: int

    @property
    def best(self) -> Change:
        """The change that makes the fibres continue best."""
        return self.indices[0][0]

    @property
    def margin(self) -> float:
        """By which share of itself the best index is larger than the next."""
        (_, first), (_, second), *_ = self.indices
        return (first - second) / first if first > 0 else 0.0

    @property
    def is_clear(self) -> bool:
        """Whether the scan tells which table is right (`MIN_MARGIN`, `MIN_VOXELS`)."""
        return self.n_voxels >= MIN_VOXELS and self.margin >= MIN_MARGIN

    def of(self, change: Change) -> float:
        """The index of a change."""
        return dict(self.indices)[change]


def fibre_coherence(dwi: DWI) -> Coherence:
    """Fibre coherence index with the table of a scan and with all flips and permutations of it.

    Parameters
    ----------
    dwi : DWI
        Within the brain: noise outside has fibres everywhere and nowhere.

    Returns
    -------
    Coherence

    Raises
    ------
    DWIError
        If it has fewer than 6 directions, which a tensor needs, or its voxel axes are not at right
        angles.
    """
    fa, direction = _fit_tensor(dwi)
    fibre = fa > MIN_FA
    along_axes = direction[fibre] @ orthogonal_part(dwi.affine)  # along the image axes
    pairs = _find_pairs(dwi.volume(fibre), dwi.voxel_size)
    indices = [
        (change, _index(along_axes @ change.matrix.T, fa[fibre], pairs)) for change in CHANGES
    ]
    ranked = sorted(indices, key=lambda pair: -pair[1])
    return Coherence(tuple(ranked), int(np.count_nonzero(fibre)))


def frame_after(change: Change, affine: NDArray[np.float64], frame: Frame) -> Frame | None:
    """The frame to read a table with instead, if that does what a change would do.

    Parameters
    ----------
    change : Change
        Of the components along the image axes, as in `Coherence`.
    affine : (4, 4) array
        Of the scan.
    frame : {"fsl", "voxel", "world"}
        That the table was read with.

    Returns
    -------
    {"fsl", "voxel", "world"} or None
        None if no frame does.  In an oblique image the world axes are taken for the image axes
        nearest to them.

    Examples
    --------
    >>> frame_after(Change((0, 1, 2), flip=0), np.diag([2.0, 2, 2, 1]), "fsl")
    'voxel'
    """
    frames: tuple[Frame, ...] = ("fsl", "voxel", "world")
    back = _to_image_axes(affine, frame).T
    for other in frames:
        turned = np.rint(_to_image_axes(affine, other) @ back)
        same = any(np.array_equal(sign * turned, change.matrix) for sign in (1, -1))
        if other != frame and same:
            return other
    return None


def _to_image_axes(affine: NDArray[np.float64], frame: Frame) -> NDArray[np.float64]:
    """From components in a frame to components along the image axes, (3, 3)."""
    rotation = orthogonal_part(affine)
    if frame == "world":
        return rotation.T
    flips = frame == "fsl" and np.linalg.det(rotation) > 0
    return np.diag([-1.0 if flips else 1.0, 1.0, 1.0])


def _fit_tensor(dwi: DWI) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """FA (V,) and main directions (V, 3) in world axes."""
    low = _fitted(dwi)
    q = dwi.q[low]
    length = np.linalg.norm(q, axis=1, keepdims=True)
    unit = np.divide(q, length, out=np.zeros_like(q), where=length > 0)
    table = gradient_table(dwi.b_values[low], bvecs=unit)
    model = TensorModel(table, fit_method="LS")
    fits = [
        model.fit(dwi.signal[start : start + _CHUNK, low])
        for start in range(0, len(dwi.signal), _CHUNK)
    ]
    return np.concatenate([f.fa for f in fits]), np.concatenate([f.evecs[..., 0] for f in fits])


def _fitted(dwi: DWI) -> NDArray[np.bool_]:
    """The samples that the tensor is fitted to, (Q,): up to `TENSOR_B`, and higher if need be."""
    for highest in (TENSOR_B, *(dwi.b_values[shell.indices].max() for shell in dwi.shells)):
        fitted = dwi.b_values <= max(highest, TENSOR_B)
        if count_directions(dwi.q[fitted]) >= TENSOR_DIRECTIONS:
            return fitted
    raise DWIError(
        f"{dwi.path or 'scan'}: {count_directions(dwi.q)} different directions; a tensor, by which "
        f"fibres are found, needs {TENSOR_DIRECTIONS}."
    )


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Neighbours along one line: its direction (3,), and the numbers of both voxels, (n,)."""

    line: NDArray[np.float64]
    first: NDArray[np.intp]
    second: NDArray[np.intp]


def _find_pairs(fibre: NDArray[np.bool_], voxel_size: NDArray[np.float64]) -> list[_Pairs]:
    """Pairs of neighbours that both hold a fibre, for the 13 lines to the 26 neighbours."""
    padded = np.full([length + 2 for length in fibre.shape], -1)
    inner = padded[1:-1, 1:-1, 1:-1]
    inner[fibre] = np.arange(np.count_nonzero(fibre))
    pairs = []
    for offset in product((-1, 0, 1), repeat=3):
        if offset > (0, 0, 0):
            there = np.roll(padded, [-o for o in offset], axis=(0, 1, 2))[1:-1, 1:-1, 1:-1]
            both = (inner >= 0) & (there >= 0)
            line = np.array(offset) * voxel_size
            pairs.append(_Pairs(line / np.linalg.norm(line), inner[both], there[both]))
    return pairs


def _index(direction: NDArray[np.float64], fa: NDArray[np.float64], pairs: list[_Pairs]) -> float:
    """Fibre coherence index of directions (n, 3)."""
    least = np.cos(np.radians(MAX_ANGLE))
    continued = pointed = 0.0
    for pair in pairs:
        aligned = np.abs(direction @ pair.line) > least
        both = aligned[pair.first] & aligned[pair.second]
        continued += float((fa[pair.first] + fa[pair.second])[both].sum())
        pointed += 2 * float(fa[aligned].sum())  # forwards and backwards
    return continued / pointed if pointed > 0 else 0.0
