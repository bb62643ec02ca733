"""``tripq predict``: maps from a network of any task."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tripq import __version__
from tripq.commands import options
from tripq.commands.checks import check_inputs, check_memory, check_results
from tripq.commands.files import ScanFiles
from tripq.commands.session import session
from tripq.infra.files import staged, write_json, write_text
from tripq.scans.nifti import split_name
from tripq.tasks import DEFAULT_TASK, SIGNAL_TASK, find_task


def predict(
    scan: options.ScanFile,
    out: Annotated[Path, options.output("maps")],
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Checkpoint, .safetensors, of any task.",
            show_default="the network of --task that comes with tripq",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            callback=lambda name: name and options.check_task(name),
            help="Use the trained network of this task that comes with tripq.",
            show_default="signal, with --directions or --denoise",
        ),
    ] = None,
    bval: options.BVal = None,
    bvec: options.BVec = None,
    mask: options.Mask = None,
    frame: options.FrameOption = "fsl",
    shell: options.Shells = None,
    directions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Directions to predict, for a network of the task signal: .bvec, with b-values in "
            "the .bval beside it, or on every shell of the scan, in the frame of --frame; or a "
            "table of MRtrix, .b, in world axes.",
            show_default="those of the scan",
        ),
    ] = None,
    denoise: Annotated[
        bool,
        typer.Option(
            "--denoise",
            help="Predict each volume from the other directions of its shell, with a network of "
            "the task signal, and write the scan again.",
        ),
    ] = False,
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
    (..._maps.json).  A network that predicts the signal also gives a scan with its gradient table
    (..._desc-predicted_dwi, or ..._desc-denoised_dwi with --denoise).

    For example:

        tripq predict dwi.nii.gz --weights trained/network.safetensors -o maps

        tripq predict dwi.nii.gz --directions 90.bvec -o predicted

        tripq predict dwi.nii.gz --denoise -o denoised
    """
    if denoise and directions is not None:
        raise typer.BadParameter(
            "--denoise predicts the directions of the scan itself: omit --directions."
        )
    if weights is not None and task is not None:
        raise typer.BadParameter("--weights records the task of its network: omit --task.")
    included = task or (SIGNAL_TASK if denoise or directions else "")
    if not (weights or included):
        raise typer.BadParameter("which network? Give --weights FILE or --task NAME.")
    with session(quiet=quiet, verbose=verbose, log_file=log) as screen:
        weights = weights or find_task(included).included_weights()
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
        from tripq.networks.apply import apply_model, load_model, trained_shells
        from tripq.networks.checkpoint import CheckpointError
        from tripq.scans import write_dwi, write_map
        from tripq.scans.directions import read_directions

        chosen, memory = choose_resources(device, memory, threads)
        model = load_model(weights)
        try:
            commands = find_task(model.task or DEFAULT_TASK)
        except LookupError as error:
            raise CheckpointError(f"{weights}: {error.args[0]}.") from error
        if (denoise or directions is not None) and not commands.predicts_signal:
            option = "--denoise" if denoise else "--directions"
            raise ValueError(
                f"{option}: {weights} is of the task {commands.name}, which does not predict "
                "signal."
            )
        tell_caution(model)
        with naming_scan(scan):
            given = read_input(files, frame, shell or (), chosen, memory, screen)
            dwi = given.dwi
            use, known, q_out = commands.predict, dwi, None
            if commands.predicts_signal:
                known, _ = trained_shells(dwi, model.b_values)
            if directions is not None:
                q_out = read_directions(directions, known, frame)
                use = partial(commands.predict, q_out=q_out)
            if denoise:
                use = partial(commands.predict, denoise=True)
            with screen.bar(f"applying the network to {scan.name}", "voxels") as report:
                found = apply_model(
                    model,
                    dwi,
                    predict=use,
                    quantity=commands.quantity,
                    voxel_size=voxel_size,
                    memory=memory,
                    device=chosen,
                    report=report,
                )
        cautions = given.tell(found.notes, found.cautions)
        found = replace(found, dwi=known, q_out=q_out, denoised=denoise)
        predicted = commands.signal(found)
        notes = found.notes if predicted is None else predicted.notes
        predicted_stem = f"{stem}_desc-{'denoised' if denoise else 'predicted'}_dwi"
        by_ending = commands.maps(model, found)
        maps = {f"{stem}_{ending}.nii.gz": values for ending, values in by_ending.items()}
        # Another command may have written maps of these names, with a different sidecar.
        scans = [] if predicted is None else [f"{predicted_stem}.nii.gz"]
        made_by = {"GeneratedBy": [{"Name": "tripq", "Version": __version__}]}
        about = {
            **made_by,
            "Task": commands.name,
            **describe_settings(model, frame, sorted(set(shell or ())), voxel_size),
            "Device": chosen,
            **given.described,
            "Maps": list(maps),
            **({"Scans": scans} if scans else {}),
            **({} if directions is None else {"Directions": directions.name}),
            "Notes": list(notes),
            **({"Cautions": list(cautions)} if cautions else {}),
        }
        sidecars: dict[str, str | dict[str, Any]] = {
            f"{stem}_{ending}": content if isinstance(content, str) else {**content, **made_by}
            for ending, content in commands.sidecars(model, found).items()
        }
        if predicted is not None:
            sidecars[f"{predicted_stem}.json"] = {**about, "SkullStripped": True}
        check_results([out / name for name in (*maps, *scans, *sidecars)], overwrite)
        with staged(out, last=about_file.name) as part:
            for name, values in maps.items():
                write_map(values, dwi, part / name)
            for name, content in sidecars.items():
                if isinstance(content, str):
                    write_text(part / name, content)
                else:
                    write_json(part / name, content)
            if predicted is not None:
                write_dwi(predicted, part / scans[0], frame)
            settings = {"Task": commands.name, **page_settings(about, notes)}
            commands.write_page(part / page.name, model, found, by_ending, settings)
            write_json(part / about_file.name, about)
        if not quiet:
            screen.show(
                *(
                    f"  {out / name}"
                    for name in (*maps, *scans, *sidecars, page.name, about_file.name)
                )
            )
