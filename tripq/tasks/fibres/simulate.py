"""Simulated scans with known fibres, and cohorts of them as BIDS datasets.

For the layout of a cohort see `tripq.tasks.layout`.  The truth of a head::

    derivatives/truth/.bidsignore
    derivatives/truth/sub-01/dwi/sub-01_desc-brain_mask.nii.gz
                                 sub-01_model-fibres_param-fodf_dwimap.nii.gz   .json
                                 sub-01_model-fibres_param-peaks_dwimap.nii.gz  .json
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripq.infra.files import write_json
from tripq.scans import write_dwi, write_map
from tripq.scans.bids import IGNORED_MAPS
from tripq.simulate import Anatomy, GradientTable, default_anatomy, random_settings, simulate_scan
from tripq.simulate.orientations import Crossings, fibre_odf, fibre_peaks
from tripq.so3.mrtrix import to_mrtrix
from tripq.tasks.fibres.names import FODF, PEAKS, describe_fodf, describe_peaks
from tripq.tasks.fibres.scans import FibreScan
from tripq.tasks.layout import ICBM, Layout

_LAYOUT = Layout(
    title="SIMULATED heads with known fibres",
    truth_title="Fibres and brains of the simulated heads",
    notice="SIMULATED scans: heads are random deformations of one template, and a model generates "
    "fibre directions, tissue, signal and noise. For research on methods only: nothing in it is a "
    "measurement of a person.",
    kind="a simulated",
    section="Simulation",
    licences=(ICBM,),
    ignored=IGNORED_MAPS,
)


@dataclass(frozen=True, eq=False)
class SimulatedFibres(FibreScan):
    """A simulated scan with its fibres.

    Parameters
    ----------
    name, dwi, fodf
        As in `tripq.tasks.fibres.scans.FibreScan`.
    peaks : (V, 3, 3) float32 array
        Directions of the fibres in world axes, as long as their volume, zeros for missing ones.
    """

    peaks: NDArray[np.float32]


def simulate_fibres(
    anatomy: Anatomy,
    table: GradientTable,
    seed: int,
    *,
    name: str = "sub-01",
    order: int = 8,
    crossings: float = 20.0,
    **how: Any,
) -> SimulatedFibres:
    """Simulate one head: `tripq.simulate.simulate_scan` with `Crossings` of the same seed.

    Parameters
    ----------
    anatomy : Anatomy
        Common anatomy of all heads.
    table : GradientTable
        Gradient table, in world axes.
    seed : int
        Of all random numbers.
    name : str
        Of the scan.
    order : int
        Highest order of the orientation distributions.
    crossings : float
        How much the angles vary at which fibres cross, in degrees; see
        `tripq.simulate.orientations.Crossings`.
    **how
        Other arguments of `tripq.simulate.simulate_scan`.

    Examples
    --------
    >>> anatomy = default_anatomy(5.0).within((-20, -20, 10), (20, 20, 30))
    >>> scan = simulate_fibres(anatomy, GradientTable.from_shells([1000.0], [12]), seed=1)
    >>> scan.fodf.shape[1], scan.peaks.shape[1:]
    (45, (3, 3))
    """
    modifier = Crossings.draw(anatomy, seed, spread=crossings)
    scan = simulate_scan(anatomy, table, seed, [modifier], **how)
    return SimulatedFibres(name, scan.dwi, fibre_odf(scan.tissue, order), fibre_peaks(scan.tissue))


def simulate_cohort(
    n: int,
    seed: int,
    *,
    anatomy: Anatomy | None = None,
    table: GradientTable | None = None,
    snr: tuple[float, float] = (15.0, 25.0),
    max_rotation: float = 10.0,
) -> Iterator[SimulatedFibres]:
    """Simulate heads one at a time, of individual shapes, half of them flipped.

    Parameters
    ----------
    n : int
        Number of heads.
    seed : int
        Of all random numbers.  Head i is independent of n.
    anatomy : Anatomy, optional
        The default is ``default_anatomy()``.
    table, snr, max_rotation
        See `tripq.simulate.random_settings`.

    Yields
    ------
    SimulatedFibres
        ``sub-01``, ``sub-02``, ...
    """
    anatomy = anatomy or default_anatomy()
    cohort = random_settings(n, seed, table=table, snr=snr, max_rotation=max_rotation)
    for number, settings in enumerate(cohort, 1):
        yield simulate_fibres(anatomy, name=f"sub-{number:02}", **vars(settings))


def write_cohort(scans: Iterable[SimulatedFibres], folder: str | PathLike[str]) -> None:
    """Write scans and their fibres as a BIDS dataset, for `tripq train` and `tripq evaluate`.

    Parameters
    ----------
    scans : iterable of SimulatedFibres
        Of different names; each is written before the next is drawn.
    folder : path
        Of the dataset; created if it does not exist.  Scans of the same names are replaced.

    Raises
    ------
    tripq.tasks.layout.DatasetError
        If the folder contains other files.
    """
    root = Path(folder)
    _LAYOUT.describe(root, {})
    for scan in scans:
        _LAYOUT.write_subject(root, scan.name, partial(_write, scan), {}, {})


def _write(scan: SimulatedFibres, folder: Path, truth: Path) -> None:
    """Write a scan in one folder, and its known fibres and the mask of its voxels in another."""
    dwi, start = scan.dwi, truth / scan.name
    write_dwi(dwi, folder / f"{scan.name}_dwi.nii.gz")
    write_map(np.ones(len(dwi.b0), bool), dwi, f"{start}_desc-brain_mask.nii.gz")
    write_map(to_mrtrix(scan.fodf), dwi, f"{start}_{FODF}.nii.gz")
    write_map(scan.peaks.reshape(len(dwi.b0), -1), dwi, f"{start}_{PEAKS}.nii.gz")
    described = {"Description": "simulated truth"}
    write_json(Path(f"{start}_{FODF}.json"), describe_fodf(scan.fodf.shape[1], described))
    write_json(Path(f"{start}_{PEAKS}.json"), describe_peaks(described))
