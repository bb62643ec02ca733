"""``tripq predict``: maps from a network of any task."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from tripq import __version__
from tripq.commands import options
from tripq.commands.files import ScanFiles
from tripq.commands.session import log as messages
from tripq.commands.session import session
from tripq.infra.files import sha256, staged, write_json
from tripq.scans.nifti import split_name
from tripq.tasks import DEFAULT_TASK, find_task


def predict(
    scan: Annotated[Path, typer.Argument(help="Diffusion scan: 4D NIfTI, .nii or .nii.gz.")],
    weights: Annotated[
        Path, typer.Option(metavar="FILE", help="Checkpoint, .safetensors, of any task.")
    ],
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the maps.")
    ],
    bval: options.BVal = None,
    bvec: options.BVec = None,
    mask: options.Mask = None,
    frame: options.FrameOption = "fsl",
    shell: options.Shells = None,
    device: options.DeviceOption = "auto",
    memory: options.Memory = "4GB",  # type: ignore[assignment]  # parsed by the option
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: options.LogFile = None,
) -> None:
    """Maps of one diffusion scan, on its own grid, from a trained network.

    The checkpoint records the task of the network, and the task defines the maps.  The command
    writes each map as an image, and their provenance (..._maps.json).

    For example:

        tripq predict dwi.nii.gz --weights trained/network.safetensors -o maps
    """
    with session(quiet=quiet, verbose=verbose, log_file=log) as screen:
        from tripq.commands.scans import read_scan
        from tripq.commands.segmenting import check_memory, choose_device, use_threads
        from tripq.networks.apply import PROGRAM_BYTES, apply_model, load_model
        from tripq.networks.checkpoint import CheckpointError
        from tripq.scans import write_map

        stem = split_name(scan)[0].removesuffix("_dwi")
        about = out / f"{stem}_maps.json"
        if not overwrite and about.exists():
            raise FileExistsError(0, "exists already; --overwrite replaces it.", str(about))
        use_threads(threads)
        chosen = choose_device(device)
        check_memory(memory)
        model = load_model(weights)
        try:
            task = find_task(model.task or DEFAULT_TASK)
        except LookupError as error:
            raise CheckpointError(f"{weights}: {error.args[0]}.") from error
        if model.caution:
            messages.warning("%s: %s", weights.name, model.caution)
        spare = memory - PROGRAM_BYTES if chosen == "cpu" else math.inf
        dwi = read_scan(ScanFiles(scan, bval, bvec, mask), frame, screen, spare)
        if shell:
            dwi = dwi.with_shells(tuple(sorted(set(shell))))
        with screen.bar(f"applying the network to {scan.name}", "voxels") as report:
            found = apply_model(
                model, dwi, predict=task.predict, memory=memory, device=chosen, report=report
            )
        for caution in found.cautions:
            messages.warning("%s: %s", scan, caution)
        maps = {f"{stem}_{name}.nii.gz": v for name, v in task.maps(model, found).items()}
        # Another command may have written maps of these names, with a different sidecar.
        for name in maps:
            if not overwrite and (out / name).exists():
                raise FileExistsError(
                    0, "exists already; --overwrite replaces it.", str(out / name)
                )
        with staged(out, last=about.name) as part:
            for name, values in maps.items():
                write_map(values, dwi, part / name)
            write_json(
                part / about.name,
                {
                    "GeneratedBy": [{"Name": "tripq", "Version": __version__}],
                    "Task": task.name,
                    "Weights": {"Name": weights.name, "SHA256": model.sha256},
                    "Scan": {"Name": scan.name, "SHA256": sha256(scan)},
                    "GradientFrame": frame,
                    "Maps": list(maps),
                    "Notes": list(found.notes),
                },
            )
        if not quiet:
            screen.show(*(f"  {out / name}" for name in (*maps, about.name)))
