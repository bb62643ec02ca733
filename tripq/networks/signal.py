"""The signal as the input of networks."""

from __future__ import annotations

#: Diffusion only attenuates, so the signal divided by b0 is at most 1, and noise adds little where
#: b0 is bright.  Where b0 is near zero (edges of a mask, fat shifts) the ratio can be 100: networks
#: clip it to this.
LARGEST_RATIO = 2.0
