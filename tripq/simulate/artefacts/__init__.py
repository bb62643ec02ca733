r"""Artefacts of a scan, one function for each; `Artefacts` are those of one scan.

`tripq.simulate.simulate_scan` applies them at these stages:

1. *Tissue maps of the anatomy*: `fold` gives the average brain the folds of one, `sharpen` and
   `blur` set the partial volume with fluid, and `coherence` scales the weights of the fibres.
2. *Position*: `displacement_field`, and `cavity_field` near air, give the displacement of the
   signal from its voxel along the phase axis.  Tissue, modifiers and mask are read at the displaced
   points, so all of them move alike: the coverage of a modifier is where it is **seen in the
   distorted scan**.  Directions of fibres are those at the displaced point, unchanged:
   distortion rotates no gradient.
3. *Signal without noise*, (V, N): `spread_diffusivities`, compression by the distortion, `drift`.
4. *Images*, one volume after the other on the whole grid: `move` (residual eddy currents and
   motion, relative to the first volume), loss of signal (`slice_gains`), `add_ghost`, and
   `truncate` for Gibbs ringing, also of the noise, which becomes correlated like the signal.
5. *Magnitude*: `tripq.simulate.noise.add_chi_noise`, with a standard deviation for each voxel.
6. *Mask*: `inexact_mask` is too wide or too tight, with a rough edge.

Every effect of a scan has its own stream of random numbers.  `Artefacts()` has no effects, and
gives exactly the scan without artefacts.  The first two axes of the grid are in plane; slices are
along the third.

Not simulated: rotation of the gradients by motion (below 2 degrees in the ranges of
`tripq.simulate.Randomisation`), signal of skull and scalp, pulsation, fat shift, gradient
nonlinearity.
"""

from __future__ import annotations

from tripq.simulate.artefacts.combined import Artefacts
from tripq.simulate.artefacts.effects import (
    Cavities,
    add_ghost,
    along_axis,
    blur,
    cavities_below,
    cavity_field,
    compression,
    displacement_field,
    drift,
    eddy_currents,
    fold,
    inexact_mask,
    lost_volumes,
    motion,
    move,
    sharpen,
    slice_gains,
    spread_diffusivities,
    truncate,
)

__all__ = [
    "Artefacts",
    "Cavities",
    "add_ghost",
    "along_axis",
    "blur",
    "cavities_below",
    "cavity_field",
    "compression",
    "displacement_field",
    "drift",
    "eddy_currents",
    "fold",
    "inexact_mask",
    "lost_volumes",
    "motion",
    "move",
    "sharpen",
    "slice_gains",
    "spread_diffusivities",
    "truncate",
]
