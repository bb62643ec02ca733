"""``tripq info``: contents of a scan or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tripq.commands import options
from tripq.commands.session import session
from tripq.infra.files import require_file

if TYPE_CHECKING:
    from tripq.scans import Frame
    from tripq.scans.read import Survey
    from tripq.scans.shells import Shell


def info(
    file: Annotated[
        Path, typer.Argument(help="Diffusion scan (.nii, .nii.gz) or checkpoint (.safetensors).")
    ],
    bval: options.BVal = None,
    bvec: options.BVec = None,
    mask: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Mask of the scan.", show_default="all voxels"),
    ] = None,
    frame: options.FrameOption = "fsl",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: options.LogFile = None,
) -> None:
    """Show the contents of a diffusion scan or a checkpoint.

    For a scan: grid, voxels, orientation, shells, and the notes of the reader.  For a checkpoint:
    the network, its notes and its SHA-256.  No file is written.

    For example:

        tripq info dwi.nii.gz

        tripq info lesion-segmenter.safetensors
    """
    with session(quiet=quiet, verbose=verbose, log_file=log) as screen:
        if file.suffix == ".safetensors":
            require_file(file)
            lines = describe_checkpoint(file)
        else:
            from tripq.scans.read import survey_dwi

            with screen.bar(f"reading {file.name}"):
                lines = describe_scan(survey_dwi(file, bval, bvec, mask, frame), frame)
        width = max(len(name) for name, _ in lines)
        screen.show(*(f"{name:<{width}}  {text}" for name, text in lines))


def describe_checkpoint(path: Path) -> list[tuple[str, str]]:
    """Names and values of the contents of a checkpoint."""
    from tripq.infra.files import sha256
    from tripq.networks.checkpoint import load_network, read_notes

    notes = read_notes(path)
    network = load_network(path)
    weights = sum(weights.numel() for weights in network.parameters())
    first = {"network": type(network).__name__, "arguments": notes.pop("arguments")}
    del notes["network"]
    return [
        ("file", str(path)),
        ("SHA-256", sha256(path)),
        *first.items(),
        ("weights", f"{weights:,}"),
        *sorted(notes.items()),
    ]


def _spell_directions(scan: Survey, shell: Shell) -> str:
    """Number of directions of a shell, and of volumes, if some have the same direction."""
    from tripq.scans.shells import count_directions

    different = count_directions(scan.scan.q[shell.indices])
    repeated = "" if different == len(shell) else f" in {len(shell)} volumes"
    return (
        f"{different} direction{'' if different == 1 else 's'}{repeated}{_spell_order(scan, shell)}"
    )


def _spell_order(scan: Survey, shell: Shell) -> str:
    """The order up to which a shell integrates harmonics exactly; nothing for none."""
    from tripq.domain.quadrature import exact_order, shell_shares

    directions = scan.scan.q[shell.indices]
    order = exact_order(directions, shell_shares(directions))
    return f", integrals exact up to order {order}" if order else ""


def describe_scan(scan: Survey, frame: Frame) -> list[tuple[str, str]]:
    """Names and values of the contents of a scan."""
    import nibabel as nib
    import numpy as np

    codes = "".join(code or "?" for code in nib.orientations.aff2axcodes(scan.affine))
    determinant = "positive" if np.linalg.det(scan.affine[:3, :3]) > 0 else "negative"
    weighted = sum(map(len, scan.shells))
    return [
        ("file", str(scan.path)),
        ("grid", " x ".join(map(str, scan.mask.shape))),
        ("voxel size", " x ".join(f"{edge:.4g}" for edge in scan.voxel_size) + " mm"),
        ("voxels", f"{len(scan.b0):,} of {scan.mask.size:,} usable"),
        ("orientation", f"{codes}, determinant of the affine {determinant}"),
        ("volumes", f"{scan.b0_volumes + weighted}, {scan.b0_volumes} of them b0"),
        *(
            ("shell", f"b = {shell.b_value:.0f} s/mm2, {_spell_directions(scan, shell)}")
            for shell in scan.shells
        ),
        ("table", f"read in the frame '{frame}'; to check whether it fits: tripq check"),
        *(("note", note) for note in scan.notes),
    ]
