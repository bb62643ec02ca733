"""``tripq check``: whether the gradient table fits the image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tripq.commands import options
from tripq.commands.paths import ScanFiles
from tripq.commands.session import session

if TYPE_CHECKING:
    from tripq.dwi import DWI, Frame
    from tripq.dwi.coherence import Coherence

_SHOWN = 4


def check(
    scan: Annotated[Path, typer.Argument(help="Diffusion scan: 4D NIfTI, .nii or .nii.gz.")],
    bval: options.BVal = None,
    bvec: options.BVec = None,
    mask: options.Mask = None,
    frame: options.FrameOption = "fsl",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: options.LogFile = None,
) -> None:
    """See by the fibres whether the gradient table is read in the right frame.

    With a table whose axes are flipped or exchanged, fibres do not run on from voxel to voxel.  All
    4 flips and 6 permutations of the axes are compared by the fibre coherence index (Schilling et
    al., Magn Reson Imaging 58:82-89, 2019).  It advises and changes nothing.

    For example:

        tripq check dwi.nii.gz

        tripq check dwi.nii.gz --frame voxel --mask brain.nii.gz
    """
    with session(quiet=quiet, verbose=verbose, log_file=log) as screen:
        from tripq.commands.scans import read_scan
        from tripq.dwi.coherence import fibre_coherence

        dwi = read_scan(ScanFiles(scan, bval, bvec, mask), frame, screen)
        with screen.bar("following the fibres"):
            found = fibre_coherence(dwi)
        screen.show(*_ranking(found), advise(found, dwi, frame))


def advise(found: Coherence, dwi: DWI, frame: Frame) -> str:
    """What to do about a table, in one line.

    Parameters
    ----------
    found : Coherence
        Of the scan.
    dwi : DWI
        The scan.
    frame : {"fsl", "voxel", "world"}
        That it was read with.
    """
    from tripq.dwi.coherence import frame_after

    if not found.is_clear:
        return (
            f"cannot tell: the best of 24 tables leads by {found.margin:.0%} only, in "
            f"{found.n_voxels:,} voxels with fibres."
        )
    if found.best.is_none:
        return f"the table fits: keep --frame {frame}."
    better = frame_after(found.best, dwi.affine, frame)
    if better is not None:
        return f"the table does not fit with --frame {frame}: use --frame {better}."
    return (
        f"the table fits in no frame: along the image axes, x y z must become {found.best}. Find "
        "out how the table was made; nothing was changed."
    )


def _ranking(found: Coherence) -> list[str]:
    """The best tables and the one that was given."""
    lines = [f"{'axes':<9} coherence"]
    for rank, (change, index) in enumerate(found.indices):
        if rank < _SHOWN or change.is_none:
            lines.append(f"{change!s:<9} {index:.3f}" + ("  as given" if change.is_none else ""))
    return lines
