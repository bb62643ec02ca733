"""``tripq simulate``: a simulated cohort as a BIDS dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tripq.commands import options
from tripq.commands.checks import check_cohort_folder
from tripq.commands.session import need, session


def simulate(
    out: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of the dataset; created if missing.")
    ],
    subjects: Annotated[
        int, typer.Option(min=1, max=999, help="Number of subjects; each takes about 20 MB.")
    ] = 10,
    shell: Annotated[
        list[float] | None,
        typer.Option(
            metavar="B",
            min=100,
            max=10_000,
            help="b-value in s/mm2; repeat the option for more shells.",
            show_default="1000",
        ),
    ] = None,
    directions: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=6,
            max=512,
            help="Number of directions; once for all shells, or once for each.",
            show_default="32",
        ),
    ] = None,
    voxel_size: Annotated[
        float, typer.Option(metavar="MM", min=1, max=5, help="Edge of the cubic voxels in mm.")
    ] = 2.0,
    max_rotation: Annotated[
        float, typer.Option(metavar="DEG", min=0, max=180, help="Maximum rotation of a head.")
    ] = 10.0,
    randomise: Annotated[
        bool,
        typer.Option("--randomise", help="Draw tissue, noise and artefacts for every scan."),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: options.LogFile = None,
) -> None:
    """Simulate scans of heads with lesions of multiple sclerosis, as a BIDS dataset.

    The scans are those of ``tripq.tasks.lesions.simulate``: signal, lesions and noise are
    simulated.  The known lesions and the brain masks are in derivatives/truth, where ``tripq
    train`` looks for them.  A second call with the same settings completes an interrupted dataset.

    For example:

        tripq simulate data --subjects 20

        tripq simulate data --shell 1000 --shell 2000 --directions 32 --randomise
    """
    with session(quiet=quiet, verbose=verbose, log_file=log) as screen:
        b_values = shell or [1000.0]
        counts = directions or [32]
        if len(counts) == 1:
            counts = counts * len(b_values)
        if len(counts) != len(b_values):
            raise ValueError(
                f"--directions: {len(counts)} numbers for {len(b_values)} shells; give one for "
                "all shells, or one for each."
            )
        check_cohort_folder(out)
        need("nilearn")
        from tripq.simulate import GradientTable, Randomisation, default_anatomy
        from tripq.tasks.lesions.datasets.simulated import write_simulated

        with screen.bar("simulating", "subjects") as report:
            names = write_simulated(
                out,
                subjects,
                GradientTable.from_shells(b_values, counts),
                seed=seed,
                max_rotation=max_rotation,
                anatomy=default_anatomy(voxel_size),
                randomisation=Randomisation() if randomise else None,
                report=report,
            )
        if not quiet:
            screen.show(f"{len(names)} simulated subjects, with known lesions:", f"  {out}")
