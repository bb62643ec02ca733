"""A cohort whose heads, lesions and signal are all simulated, as a BIDS dataset.

For the layout see `tripq.tasks.layout`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from os import PathLike
from pathlib import Path

import numpy as np

from tripq.simulate import (
    Anatomy,
    GradientTable,
    Randomisation,
    SimulationError,
    default_anatomy,
    random_settings,
)
from tripq.tasks.layout import ICBM, Layout, digest
from tripq.tasks.lesions.datasets.layout import volume_ml, write_files
from tripq.tasks.lesions.simulate import simulate_subject

NOTICE = (
    "SIMULATED scans with SIMULATED lesions: heads are random deformations of one template, and "
    "lesions, fibres, signal and noise are a model's. For research on methods only: nothing in it "
    "is a measurement of a person."
)
"""Description of every cohort."""

_LAYOUT = Layout(
    title="SIMULATED heads with SIMULATED lesions of multiple sclerosis",
    truth_title="Lesions and brains of the simulated heads",
    notice=NOTICE,
    kind="a simulated",
    section="Simulation",
    columns={
        "snr": "Signal-to-noise ratio of normal white matter at b = 0",
        "lesion_ml": "Volume of the voxels that are covered by half or more, in ml",
    },
    licences=(ICBM,),
)


def write_simulated(
    folder: str | PathLike[str],
    n: int,
    table: GradientTable,
    *,
    seed: int = 0,
    snr: tuple[float, float] = (15.0, 25.0),
    max_rotation: float = 10.0,
    vary_table: bool = True,
    anatomy: Anatomy | None = None,
    randomisation: Randomisation | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Simulate subjects and write them.

    Existing subjects are kept, so a second call completes an interrupted cohort, or adds to it.
    The same arguments give the same bytes, and a subject is independent of their number.

    Parameters
    ----------
    folder : path
        Created if it does not exist.
    n : int
        Number of subjects, 1 or more.
    table : GradientTable
        Gradient table, in world axes.
    seed, snr, max_rotation, vary_table : optional
        See `tripq.simulate.random_settings`.
    anatomy : Anatomy, optional
        The default is `tripq.simulate.default_anatomy`, 2 mm.
    randomisation : Randomisation, optional
        Ranges from which tissue, noise and artefacts of every scan are drawn, by default none.
        They replace `snr`.
    report : callable, optional
        Called with the number of finished subjects and of all.

    Returns
    -------
    list of str
        Names of the subjects, such as ``sub-001``.

    Raises
    ------
    DatasetError
        If the folder contains other files or a cohort with other settings.
    tripq.simulate.SimulationError
        If an argument is invalid.
    """
    if n < 1:
        raise SimulationError(f"a cohort needs 1 subject or more, not {n}.")
    folder = Path(folder)
    anatomy = anatomy or default_anatomy()
    settings = {
        "Seed": seed,
        "MaxRotationDegrees": max_rotation,
        "VariedTables": vary_table,
        "GradientTable": digest(table.b_values, table.directions),
        "Anatomy": digest(*(getattr(anatomy, name) for name in ("wm", "gm", "csf", "affine"))),
        **(
            {"SNR": list(snr)}
            if randomisation is None
            else {"Randomisation": json.loads(json.dumps(asdict(randomisation)))}  # with lists
        ),
    }
    _LAYOUT.describe(folder, settings)
    names = [f"sub-{number:03}" for number in range(1, n + 1)]
    drawn = random_settings(
        n, seed, table=table, snr=snr, max_rotation=max_rotation, vary_table=vary_table
    )
    for number, (name, scan) in enumerate(zip(names, drawn, strict=True)):
        report(number, n)
        if (folder / name).is_dir():
            continue
        arguments = vars(scan)
        if randomisation is not None:
            rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, 0)))
            arguments = {**arguments, **vars(randomisation.draw(rng))}
        subject = simulate_subject(anatomy, **arguments)
        about = {"snr": f"{arguments['snr']:.2f}", "lesion_ml": f"{volume_ml(subject):.3f}"}
        write_files(_LAYOUT, folder, name, subject, settings, about)
        _LAYOUT.write_participants(folder)
    report(n, n)
    return names
