"""Augmentation: boxes of training scans with other noise, bias and directions.

It needs no new simulation and no label, so it suits every task.  A network should depend neither on
the noise of a scan nor on its gradient table; `PatchDataModule` changes every box at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from tripq.scans import DWI
from tripq.simulate.noise import add_rician_noise

Augment = Callable[[DWI, np.random.Generator, np.random.Generator], DWI]
"""Changes a box: ``augment(box, of_scan, of_box)``, see `Augmentation.__call__`.

The voxels of the box must remain, because the target is theirs.
"""

FEWEST_DIRECTIONS = 6
"""So many directions of a shell always remain."""


@dataclass(frozen=True)
class Augmentation:
    """Random noise, bias, error of b0 and choice of directions; an `Augment`.

    A scale of all intensities needs no augmentation: it cancels in the division by b0.  `field`
    and `contrast` change no more than b0, for networks that read its contrast.

    Parameters
    ----------
    noise : float
        Largest standard deviation of the Rician noise that is added, as a share of the median b0
        of the box; uniform from 0.  The mean of the b0 volumes gets less of it, and voxels with a
        low b0 more in proportion, as in a scan.
    bias : float
        Largest bias between b0 and the other volumes: a linear function of the position that
        reaches 1 - bias and 1 + bias in the farthest voxels.
    b0_error : float
        Logarithmic standard deviation of a factor of all volumes but b0.
    dropped : float
        Largest share of the directions of each shell that is left out, uniform from 0;
        `FEWEST_DIRECTIONS` remain.  It must be 0 for networks of a fixed number of directions,
        such as `tripq.networks.conv.ConvSegmenter`.
    field : float
        Largest bias of all volumes, as of a receive coil: a linear function of the position that
        reaches 1 - field and 1 + field in the farthest voxels.
    contrast : float
        Logarithmic standard deviation of a power of b0, relative to its median in the box: an
        echo time that is longer by a tenth raises the ratios of T2-weighted intensities to the
        power 1.1.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> Augmentation(dropped=0.0)
    Augmentation(noise=0.04, bias=0.05, b0_error=0.03, dropped=0.0, field=0.3, contrast=0.2)
    """

    noise: float = 0.04
    bias: float = 0.05
    b0_error: float = 0.03
    dropped: float = 0.5
    field: float = 0.3
    contrast: float = 0.2

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < 1:
                raise ValueError(
                    f"augmentation: {field.name}={getattr(self, field.name)} must be from 0 to "
                    "below 1"
                )

    def __call__(self, box: DWI, of_scan: np.random.Generator, of_box: np.random.Generator) -> DWI:
        """Change a box.

        Parameters
        ----------
        box : DWI
            Box of a scan.
        of_scan : numpy.random.Generator
            The same for all boxes of a scan in a batch, which therefore have the same directions:
            they merge into one graph.
        of_box : numpy.random.Generator
            Different for every box.

        Returns
        -------
        DWI
            The same voxels.
        """
        kept = self._directions(box, of_scan)
        sigma = of_box.uniform(0, self.noise)
        tilt = of_box.standard_normal(3)
        factor = np.exp(self.b0_error * of_box.standard_normal())
        signal = factor * box.signal[:, kept]
        if self.bias:
            signal *= 1 + of_box.uniform(0, self.bias) * _ramp(box, tilt)[:, None]
        b0 = np.ones_like(box.b0)
        if self.noise:
            level = (sigma * np.median(box.b0) / box.b0).astype(np.float32)
            b0 = add_rician_noise(b0, level / math.sqrt(box.b0_volumes), of_box)
            scale = 1.0 if box.response is None else box.response.attenuation(box.b_values[kept])
            signal = add_rician_noise(signal, level[:, None] * scale, of_box)
        signal /= b0[:, None]
        signal[:, 0] = 1.0
        return replace(
            box,
            signal=signal.astype(np.float32, copy=False),
            b_values=box.b_values[kept],
            q=box.q[kept],
            b0=self._intensity(box, of_box) * b0,
        )

    def _intensity(self, box: DWI, rng: np.random.Generator) -> NDArray[np.float32]:
        """b0 of another coil and echo time, (V,)."""
        power = np.exp(self.contrast * rng.standard_normal())
        bias = 1 + rng.uniform(0, self.field) * _ramp(box, rng.standard_normal(3))
        ratio = (box.b0 / np.median(box.b0)) ** (power - 1)
        return (box.b0 * ratio * bias).astype(np.float32)

    def _directions(self, box: DWI, rng: np.random.Generator) -> NDArray[np.intp]:
        """Columns that remain, b0 first."""
        kept: list[NDArray[np.intp]] = [np.zeros(1, np.intp)]
        for shell in box.shells:
            fewest = max(FEWEST_DIRECTIONS, math.ceil((1 - self.dropped) * len(shell)))
            some = rng.integers(min(fewest, len(shell)), len(shell) + 1)
            kept.append(rng.permutation(shell.indices)[:some])
        return np.sort(np.concatenate(kept))


def _ramp(box: DWI, direction: NDArray[np.float64]) -> NDArray[np.float32]:
    """Linear function of the position, (V,), from -1 to 1."""
    along = box.voxel_centres() @ direction
    middle = (along.min() + along.max()) / 2
    return ((along - middle) / max(along.max() - middle, 1e-9)).astype(np.float32)
