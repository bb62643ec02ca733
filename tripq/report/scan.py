"""The measurement on a page: the scan, its shells and its signal, for ``scan.html.jinja``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tripq.report.charts import SHELL_COLOURS, signal_figure
from tripq.report.page import Picture, make_picture
from tripq.report.sphere import (
    AZIMUTH,
    ELEVATION,
    ShellView,
    SpherePoint,
    axis_letters,
    view_shells,
)
from tripq.scans import DWI, voxel_ml


@dataclass(frozen=True, eq=False)
class ScanView:
    """A scan as the template shows it; `view_scan` makes it.

    Attributes
    ----------
    dwi : DWI
        The scan.
    mask_ml : float
        Volume of its voxels in ml.
    above_b0 : float
        Share of the diffusion-weighted values that are above b0.
    shells : tuple of ShellView
        By ascending b-value.
    letters : dict of str to SpherePoint
        For the sides of the head.
    signal : Picture
        Histogram of the signal, and its median in every volume.
    shell_colours : tuple of str
        One for each shell, in turn.
    azimuth, elevation : float
        Of the first view on the spheres, in degrees.
    """

    dwi: DWI
    mask_ml: float
    above_b0: float
    shells: tuple[ShellView, ...]
    letters: dict[str, SpherePoint]
    signal: Picture
    shell_colours: tuple[str, ...] = SHELL_COLOURS
    azimuth: float = AZIMUTH
    elevation: float = ELEVATION

    @property
    def title(self) -> str:
        """The name of the file without its suffix."""
        path = self.dwi.path
        return path.name.removesuffix(".gz").removesuffix(".nii") if path else "Scan"


def view_scan(dwi: DWI) -> ScanView:
    """What a page shows of a scan."""
    return ScanView(
        dwi=dwi,
        mask_ml=len(dwi.b0) * voxel_ml(dwi.affine),
        above_b0=float(np.mean([np.mean(column > 1) for column in dwi.signal[:, 1:].T])),
        shells=view_shells(dwi),
        letters=axis_letters(),
        signal=make_picture(
            signal_figure(dwi), "Histogram of signal over b0, and its median in every volume"
        ),
    )
