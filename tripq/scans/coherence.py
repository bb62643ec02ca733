r"""Fibre coherence: a check of the gradient directions against the image.

A table with flipped or permuted axes changes the direction of each fibre but not the positions of
its neighbours, so fibres no longer point at their continuation.  The fibre coherence index of
Schilling et al. ("A fiber coherence index for quality control of B-table orientation in diffusion
MRI scans", Magn Reson Imaging 58:82-89, 2019) counts continued fibres: the pairs of neighbouring
voxels (of 26) with main directions both within 30 degrees of the line between their centres, each
pair weighted by the sum of its fractional anisotropies (FA).  In voxels that are not cubic some
directions have more neighbours than others, and a wrong table that rotates fibres into these
directions would win.  So the sum is divided by its value if the neighbour continued every fibre
that points at it: the index is the share of fibres, weighted by FA, that continue.

A direction and its opposite are equivalent, so there are 24 tables: 4 flips (none, x, y, z) times 6
permutations of the axes.  The tensor is fitted once, because its axes follow the axes of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from tripq.scans.errors import DWIError
from tripq.scans.frames import Frame, orthogonal_part
from tripq.scans.scan import DWI
from tripq.scans.shells import TENSOR_DIRECTIONS, count_directions
from tripq.scans.tensor import main_directions

MIN_FA = 0.3
"""Voxels with lower fractional anisotropy have no clear fibre; 0.2 to 0.3 bounds white matter.
"""

MAX_ANGLE = 30.0
"""Largest angle in degrees between a fibre and the line to the voxel that continues it."""

MIN_MARGIN = 0.05
"""Smallest relative lead of the best table over the next one for an answer.

``perf/frame_check.py`` counts the answers on real and simulated scans with fewer directions, fewer
slices and more noise (docs/frames.md): the largest lead of a wrong table is 0.034.
"""

MIN_VOXELS = 500
"""Smallest number of voxels with fibres for an answer."""

TENSOR_B = 1600.0
"""Largest b-value of the tensor fit in s/mm2; the tensor model does not describe higher ones.

If this leaves fewer than `TENSOR_DIRECTIONS`, the next shells are fitted, too: FA becomes lower,
but the main direction is that of the weakest signal at any b-value.
"""

_AXES = "xyz"
_CHUNK = 50_000  # voxels whose tensors are fitted at once


@dataclass(frozen=True)
class Change:
    """One of the 24 flips and permutations of the axes of a table.

    Parameters
    ----------
    axes : tuple of int
        The old component in the first, second and third place.
    flip : int or None
        The new component that is negated.

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
        """Whether the table is unchanged."""
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
"""All 24; the first is the identity."""


@dataclass(frozen=True)
class Coherence:
    """Fibre coherence of a scan, with its table and with the 23 others.

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
        """The change with the highest index."""
        return self.indices[0][0]

    @property
    def margin(self) -> float:
        """Relative lead of the best index over the next."""
        (_, first), (_, second), *_ = self.indices
        return (first - second) / first if first > 0 else 0.0

    @property
    def is_clear(self) -> bool:
        """Whether the scan determines the right table (`MIN_MARGIN`, `MIN_VOXELS`)."""
        return self.n_voxels >= MIN_VOXELS and self.margin >= MIN_MARGIN

    def of(self, change: Change) -> float:
        """The index of a change."""
        return dict(self.indices)[change]


def fibre_coherence(dwi: DWI) -> Coherence:
    """Fibre coherence index with the table of a scan and with all flips and permutations of it.

    Parameters
    ----------
    dwi : DWI
        Restricted to the brain: noise outside has random directions.

    Returns
    -------
    Coherence

    Raises
    ------
    DWIError
        If it has fewer than 6 directions, the minimum for a tensor, or its voxel axes are not
        orthogonal.
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
    """The frame that is equivalent to a change of the table, if there is one.

    Parameters
    ----------
    change : Change
        Of the components along the image axes, as in `Coherence`.
    affine : (4, 4) array
        Of the scan.
    frame : {"fsl", "voxel", "world"}
        The frame with which the table was read.

    Returns
    -------
    {"fsl", "voxel", "world"} or None
        None if no frame does.  In an oblique image each world axis is replaced by the nearest image
        axis.

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
    fits = [
        main_directions(dwi.signal[start : start + _CHUNK, low], dwi.q[low])
        for start in range(0, len(dwi.signal), _CHUNK)
    ]
    fa, direction = zip(*fits, strict=True)
    return np.concatenate(fa), np.concatenate(direction)


def _fitted(dwi: DWI) -> NDArray[np.bool_]:
    """The samples that the tensor is fitted to, (Q,): up to `TENSOR_B`, and higher if need be."""
    for highest in (TENSOR_B, *(dwi.b_values[shell.indices].max() for shell in dwi.shells)):
        fitted = dwi.b_values <= max(highest, TENSOR_B)
        if count_directions(dwi.q[fitted]) >= TENSOR_DIRECTIONS:
            return fitted
    raise DWIError(
        f"{dwi.path or 'scan'}: {count_directions(dwi.q)} different directions; the tensor fit "
        f"needs {TENSOR_DIRECTIONS}."
    )


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Neighbours along one line: its direction (3,), and the numbers of both voxels, (n,)."""

    line: NDArray[np.float64]
    first: NDArray[np.intp]
    second: NDArray[np.intp]


def _find_pairs(fibre: NDArray[np.bool_], voxel_size: NDArray[np.float64]) -> list[_Pairs]:
    """Pairs of neighbours that both contain a fibre, for the 13 lines to the 26 neighbours."""
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
