"""``tripq segment``: the lesion candidates of one scan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tripq.commands import options
from tripq.commands.checks import check_inputs, check_memory, check_results
from tripq.commands.files import ResultFiles, ScanFiles
from tripq.commands.session import session
from tripq.scans.nifti import split_name


def segment(
    scan: options.ScanFile,
    out: Annotated[Path, options.output("results")],
    bval: options.BVal = None,
    bvec: options.BVec = None,
    mask: options.Mask = None,
    frame: options.FrameOption = "fsl",
    shell: options.Shells = None,
    voxel_size: options.VoxelSize = None,
    weights: options.Weights = None,
    threshold: options.Threshold = None,
    min_volume: options.MinVolume = None,
    device: options.DeviceOption = "auto",
    memory: options.Memory = "4GB",  # type: ignore[assignment]  # parsed by the option
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: options.LogFile = None,
) -> None:
    """Map of lesion candidates of one diffusion scan, on its own grid.

    Candidates are what the network marks.  The command writes the probability of a lesion in every
    voxel (..._probseg.nii.gz), the voxels of the candidates (..._mask.nii.gz), their provenance
    (..._probseg.json), and a report page (..._report.html).  The scan must be corrected for motion
    and distortion as usual.

    For example:

        tripq segment dwi.nii.gz -o results

        tripq segment dwi.nii.gz --bval dwi.bval --bvec dwi.bvec --mask brain.nii.gz -o results

        tripq segment dwi.nii.gz --bvec dwi.b --frame world -o results --memory 2GB
    """
    with session(quiet=quiet, verbose=verbose, log_file=log) as screen:
        stem = f"{split_name(scan)[0].removesuffix('_dwi')}_label-lesion"
        results = ResultFiles.named(lambda suffix, extension: out / f"{stem}_{suffix}{extension}")
        files = ScanFiles(scan, bval, bvec, mask)
        check_results(results.expected, overwrite)
        check_memory(memory)
        check_inputs(files, frame, weights)
        from tripq.commands.segmenting import Settings, segment_files

        settings = Settings.choose(
            weights,
            threshold,
            min_volume,
            frame,
            device,
            memory,
            threads,
            shell,
            voxel_size,
        )
        found = segment_files(files, results, settings, screen)
        if not quiet:
            plural = "" if found.count == 1 else "s"
            least = settings.min_volume
            smallest = f" in {least:g} ml or more" if least else ""
            screen.show(
                f"{found.count} lesion candidate{plural}, {found.volume_ml:.2f} ml, at a "
                f"probability of {settings.threshold:g} or more{smallest}, "
                f"in {found.seconds:.0f} s:",
                *(f"  {path}" for path in results.expected),
                *settings.remarks.values(),
            )
