"""Labels of simulated scans: the tissue that has the largest share of a voxel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tripq.simulate import SimulatedScan
from tripq.tasks.tissue.classes import Classes
from tripq.tasks.tissue.scans import LabelledScan

TISSUE = (("white matter", "WM"), ("grey matter", "GM"), ("cerebrospinal fluid", "CSF"))


def label_scan(
    scan: SimulatedScan, name: str, modified: Sequence[tuple[str, str]] = ()
) -> LabelledScan:
    """Label every voxel of a simulated scan.

    Parameters
    ----------
    scan : SimulatedScan
        The scan, with the fractions of its tissue.
    name : str
        Of the scan, such as ``sub-01``.
    modified : sequence of (str, str)
        Names and labels of further classes, one for each modifier of the scan: voxels that the
        modifier covers by half or more; the last one counts.

    Raises
    ------
    ValueError
        If there is not one class for every modifier.

    Examples
    --------
    >>> from tripq.simulate import GradientTable, default_anatomy, simulate_scan
    >>> anatomy = default_anatomy(5.0).within((-40, -40, 10), (40, 40, 30))
    >>> table = GradientTable.from_shells([1000.0], [12])
    >>> scan = label_scan(simulate_scan(anatomy, table, seed=0), "sub-01")
    >>> scan.classes.labels, np.unique(scan.labels).tolist()
    (('WM', 'GM', 'CSF'), [0, 1, 2])
    """
    tissue = scan.tissue
    labels = np.stack([tissue.wm, tissue.gm, tissue.csf]).argmax(axis=0).astype(np.int8)
    for number, (_, coverage) in enumerate(
        zip(modified, scan.coverages, strict=True), start=len(TISSUE)
    ):
        labels[coverage >= 0.5] = number
    names, abbreviations = zip(*TISSUE, *modified, strict=True)
    return LabelledScan(name, scan.dwi, labels, Classes(names, abbreviations))
