"""``tripq check``: whether the gradient table fits the image."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tripq.commands import options
from tripq.commands.checks import check_inputs
from tripq.commands.files import ScanFiles
from tripq.commands.session import FAILED, session

if TYPE_CHECKING:
    from tripq.scans import DWI, Frame
    from tripq.scans.coherence import Coherence
    from tripq.scans.order import Order

UNCLEAR = 3
"""Exit status if the scan does not determine whether the table fits; 1 if it does not fit."""

_SHOWN = 4


@dataclass(frozen=True)
class Verdict:
    """Whether a gradient table fits, and what to do.

    Parameters
    ----------
    table : {"fits", "other frame", "other axes", "wrong order", "cannot tell"}
        The table fits; it fits in another frame; it fits with other axes, which are those of no
        frame; it fits in no frame and with no axes; or the scan does not determine it.
    advice : str
        The verdict and the recommended action, in one line.
    coherence : Coherence
        Fibre coherence of the tables.
    order : Order
        Order of the directions.
    frame : {"fsl", "voxel", "world"} or None
        The frame that fits, if any.
    """

    table: Literal["fits", "other frame", "other axes", "wrong order", "cannot tell"]
    advice: str
    coherence: Coherence
    order: Order
    frame: Frame | None = None

    @property
    def status(self) -> int:
        """Exit status of the command."""
        return {"fits": 0, "cannot tell": UNCLEAR}.get(self.table, FAILED)

    def as_json(self) -> dict[str, Any]:
        """All attributes, for programs."""
        return {
            "table": self.table,
            "advice": self.advice,
            "frame": self.frame,
            "axes": str(self.coherence.best) if self.coherence.is_clear else None,
            "coherence": {str(change): index for change, index in self.coherence.indices},
            "margin": self.coherence.margin,
            "fibre_voxels": self.coherence.n_voxels,
            "explained": self.order.explained,
            "explained_when_shuffled": self.order.usual,
            "shuffles_as_good": self.order.chance,
            "directions": self.order.n_directions,
        }


def check(
    scan: options.ScanFile,
    bval: options.BVal = None,
    bvec: options.BVec = None,
    mask: options.Mask = None,
    frame: options.FrameOption = "fsl",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON, for programs.")
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: options.LogFile = None,
) -> None:
    """Check by fibre coherence whether the gradient table is read in the right frame.

    If the axes of the table are flipped or permuted, fibres do not continue from voxel to voxel.
    All 4 flips and 6 permutations of the axes are compared by the fibre coherence index (Schilling
    et al., Magn Reson Imaging 58:82-89, 2019).  If the directions explain the signal no better than
    the same directions in random order, no table fits.  The command changes no file.

    The exit status is 0 if the table fits, 1 if it does not or a file cannot be used, 2 for invalid
    usage, and 3 if the scan does not determine whether the table fits.

    For example:

        tripq check dwi.nii.gz

        tripq check dwi.nii.gz --frame voxel --mask brain.nii.gz

        tripq check dwi.nii.gz --json
    """
    with session(quiet=quiet, verbose=verbose, log_file=log) as screen:
        files = ScanFiles(scan, bval, bvec, mask)
        check_inputs(files, frame)
        from tripq.commands.scans import read_scan

        dwi = read_scan(files, frame, screen)
        with screen.bar("following the fibres"):
            verdict = judge(dwi, frame)
        if as_json:
            typer.echo(json.dumps({"scan": str(scan), "read_as": frame, **verdict.as_json()}))
        else:
            screen.show(*_ranking(verdict.coherence), verdict.advice)
        raise typer.Exit(verdict.status)


def judge(dwi: DWI, frame: Frame) -> Verdict:
    """Check whether the gradient table of a scan fits.

    Parameters
    ----------
    dwi : DWI
        The scan, within the brain mask.
    frame : {"fsl", "voxel", "world"}
        Frame in which its table was read.

    Raises
    ------
    DWIError
        If it has too few directions for a tensor, see `tripq.scans.coherence.fibre_coherence`.
    """
    from tripq.scans.coherence import fibre_coherence
    from tripq.scans.order import volume_order

    return weigh(fibre_coherence(dwi), volume_order(dwi), dwi, frame)


def weigh(found: Coherence, order: Order, dwi: DWI, frame: Frame) -> Verdict:
    """Derive a verdict from the fibre coherence and the order of the directions.

    Parameters
    ----------
    found : Coherence
        Fibre coherence of the scan.
    order : Order
        Order of its directions.
    dwi : DWI
        The scan.
    frame : {"fsl", "voxel", "world"}
        Frame in which its table was read.
    """
    from tripq.scans.coherence import frame_after

    if order.is_wrong:
        return Verdict(
            "wrong order",
            f"no table fits, with any flip or permutation of its axes: the directions explain "
            f"{order.explained:.0%} of the variation between volumes, and in random order "
            f"{order.usual:.0%}. Volumes and directions are in different orders, or the table "
            "belongs to another scan, or the scan is noise only.",
            *(found, order),
        )
    if not found.is_clear:
        return Verdict(
            "cannot tell",
            f"cannot tell: the best of 24 tables leads by only {found.margin:.0%}, in "
            f"{found.n_voxels:,} voxels with fibres.",
            *(found, order),
        )
    if found.best.is_none:
        return Verdict("fits", f"the table fits: keep --frame {frame}.", found, order, frame)
    better = frame_after(found.best, dwi.affine, frame)
    if better is not None:
        return Verdict(
            "other frame",
            f"the table does not fit with --frame {frame}: use --frame {better}.",
            *(found, order, better),
        )
    return Verdict(
        "other axes",
        f"the table fits in no frame: along the image axes, x y z must become {found.best}. Check "
        "how the table was made; no file was changed.",
        *(found, order),
    )


def _ranking(found: Coherence) -> list[str]:
    """Lines for the best tables and the given one."""
    lines = [f"{'axes':<9} coherence"]
    for rank, (change, index) in enumerate(found.indices):
        if rank < _SHOWN or change.is_none:
            lines.append(f"{change!s:<9} {index:.3f}" + ("  as given" if change.is_none else ""))
    return lines
