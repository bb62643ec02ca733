"""Changes of the tissue of a head: a disease, a treatment, any other visible effect.

A modifier is drawn or read in the anatomy, the common space of all heads. The simulator deforms and
rotates it with the head, applies it to the tissue of every voxel before the signal is computed, and
returns its share of each voxel: the ground truth for training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tripq.simulate.signal import Tissue

ReadMap = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From a map (X, Y, Z) of the anatomy to its values (V,) in the voxels of a scan."""


class Modifier(Protocol):
    """A change of the tissue of one head.

    Examples
    --------
    Water that takes the place of half of the tissue, on the left:

    >>> from dataclasses import dataclass, replace
    >>> from tripq.simulate import GradientTable, default_anatomy, simulate_scan
    >>> @dataclass(frozen=True, eq=False)
    ... class Swelling:
    ...     coverage: NDArray[np.float32]
    ...
    ...     def change(self, tissue: Tissue, read: ReadMap) -> Tissue:
    ...         return replace(tissue, water=np.maximum(tissue.water, read(0.5 * self.coverage)))
    >>> anatomy = default_anatomy(5.0).within((-40, -40, 10), (40, 40, 30))
    >>> left = anatomy.grid.points()[:, 0].reshape(anatomy.mask.shape) < 0
    >>> table = GradientTable.from_shells([1000.0], [12])
    >>> scan = simulate_scan(anatomy, table, seed=0, modifiers=[Swelling(left.astype(np.float32))])
    >>> (swollen,) = scan.coverages
    >>> dry, wet = (scan.dwi.signal[swollen == share].mean() for share in (0, 1))
    >>> bool(wet < dry)
    True
    """

    @property
    def coverage(self) -> NDArray[np.float32]:
        """Share of each voxel of the anatomy that is changed, (X, Y, Z)."""

    def change(self, tissue: Tissue, read: ReadMap) -> Tissue:
        """Change the tissue of a scan.

        Parameters
        ----------
        tissue : Tissue
            Of V voxels, after the previous modifiers.
        read : callable
            Reads a map (X, Y, Z) of the anatomy in these voxels: (V,) float32.

        Returns
        -------
        Tissue
            Of the same voxels.
        """
