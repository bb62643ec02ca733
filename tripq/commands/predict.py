"""``tripq predict``: maps from a network of any task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tripq import __version__
from tripq.commands import options
from tripq.commands.checks import check_inputs, check_memory, check_results
from tripq.commands.files import ScanFiles
from tripq.commands.session import session
from tripq.infra.files import staged, write_json
from tripq.scans.nifti import split_name
from tripq.tasks import DEFAULT_TASK, find_task


def predict(
    scan: options.ScanFile,
    weights: Annotated[
        Path, typer.Option(metavar="FILE", help="Checkpoint, .safetensors, of any task.")
    ],
    out: Annotated[Path, options.output("maps")],
    bval: options.BVal = None,
    bvec: options.BVec = None,
    mask: options.Mask = None,
    frame: options.FrameOption = "fsl",
    shell: options.Shells = None,
    voxel_size: options.VoxelSize = None,
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
    writes each map as an image, a page with all maps (..._maps.html) and their provenance
    (..._maps.json).

    For example:

        tripq predict dwi.nii.gz --weights trained/network.safetensors -o maps
    """
    with session(quiet=quiet, verbose=verbose, log_file=log) as screen:
        stem = split_name(scan)[0].removesuffix("_dwi")
        about_file, page = out / f"{stem}_maps.json", out / f"{stem}_maps.html"
        files = ScanFiles(scan, bval, bvec, mask)
        check_results((about_file, page), overwrite)
        check_memory(memory)
        check_inputs(files, frame, weights)
        from tripq.commands.applying import (
            choose_resources,
            describe_settings,
            naming_scan,
            page_settings,
            read_input,
            tell_caution,
        )
        from tripq.networks.apply import apply_model, load_model
        from tripq.networks.checkpoint import CheckpointError
        from tripq.scans import write_map

        chosen, memory = choose_resources(device, memory, threads)
        model = load_model(weights)
        try:
            task = find_task(model.task or DEFAULT_TASK)
        except LookupError as error:
            raise CheckpointError(f"{weights}: {error.args[0]}.") from error
        tell_caution(model)
        with naming_scan(scan):
            given = read_input(files, frame, shell or (), chosen, memory, screen)
            dwi = given.dwi
            with screen.bar(f"applying the network to {scan.name}", "voxels") as report:
                found = apply_model(
                    model,
                    dwi,
                    predict=task.predict,
                    quantity=task.quantity,
                    voxel_size=voxel_size,
                    memory=memory,
                    device=chosen,
                    report=report,
                )
        cautions = given.tell(found.notes, found.cautions)
        by_ending = task.maps(model, found)
        maps = {f"{stem}_{ending}.nii.gz": values for ending, values in by_ending.items()}
        # Another command may have written maps of these names, with a different sidecar.
        check_results([out / name for name in maps], overwrite)
        about = {
            "GeneratedBy": [{"Name": "tripq", "Version": __version__}],
            "Task": task.name,
            **describe_settings(model, frame, sorted(set(shell or ())), voxel_size),
            "Device": chosen,
            **given.described,
            "Maps": list(maps),
            "Notes": list(found.notes),
            **({"Cautions": list(cautions)} if cautions else {}),
        }
        with staged(out, last=about_file.name) as part:
            for name, values in maps.items():
                write_map(values, dwi, part / name)
            settings = {"Task": task.name, **page_settings(about, found.notes)}
            task.write_page(part / page.name, model, found, settings)
            write_json(part / about_file.name, about)
        if not quiet:
            screen.show(*(f"  {out / name}" for name in (*maps, page.name, about_file.name)))
