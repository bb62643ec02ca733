"""Application of a network to one scan, shared by `tripq predict` and the segmenting commands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from tripq import __version__
from tripq.commands.check import judge
from tripq.commands.checks import check_memory
from tripq.commands.derivatives import shown_settings
from tripq.commands.files import ScanFiles
from tripq.commands.options import Device
from tripq.commands.scans import read_scan
from tripq.commands.session import Session, log
from tripq.infra.files import sha256
from tripq.infra.memory import PROGRAM_BYTES
from tripq.infra.rank import Rank
from tripq.networks.apply import Model
from tripq.scans import DWI, DWIError, Frame
from tripq.scans.read import find_table


@dataclass(frozen=True, eq=False)
class Input:
    """A scan as it was read, with the cautions about its gradient table.

    Parameters
    ----------
    dwi : DWI
        The scan; its notes include the doubts.
    files : ScanFiles
        Its files.
    fingerprints : mapping
        Name and SHA-256 of each file, by its name in a sidecar.
    doubts : tuple of str
        Cautions about the gradient table.
    """

    dwi: DWI
    files: ScanFiles
    fingerprints: Mapping[str, Mapping[str, str]]
    doubts: tuple[str, ...]

    @property
    def described(self) -> dict[str, Any]:
        """The input in a sidecar."""
        return {
            "Inputs": self.fingerprints,
            "VoxelSizeMillimetres": [round(float(edge), 4) for edge in self.dwi.voxel_size],
            "BrainMask": "given" if self.files.mask is not None else "median_otsu of dipy, from b0",
        }

    def tell(self, notes: Sequence[str], cautions: Sequence[str]) -> tuple[str, ...]:
        """Report notes and cautions of a result; return all cautions."""
        everything = (*self.doubts, *cautions)
        for caution in everything:
            log.warning("%s: %s", self.files.scan, caution)
        later = notes[len(self.dwi.notes) :]
        _tell([note for note in later if note not in everything], self.files)
        return everything


def choose_resources(device: Device, memory: float, threads: int | None) -> tuple[str, float]:
    """Device and memory of this process; sets the number of CPU threads.

    Raises
    ------
    ValueError
        If there is no such device, or the memory is too small for the program.
    """
    use_threads(threads)
    chosen = choose_device(device)
    processes = Rank.here().local_count
    if chosen == "cpu":
        memory /= processes  # each CUDA device belongs to one process
    check_memory(memory, processes)
    return chosen, memory


def use_threads(threads: int | None) -> None:
    """Set the number of CPU threads; None keeps the default of the libraries."""
    if threads is not None:
        torch.set_num_threads(threads)
        threadpool_limits(threads)


def choose_device(device: Device) -> str:
    """``"cpu"`` or ``"cuda"``.

    Raises
    ------
    ValueError
        If a CUDA device is requested and none is available.
    """
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ValueError(
            "--device cuda: torch finds no CUDA device here. Without one, --device auto computes "
            "on the CPU."
        )
    return "cuda" if there and device != "cpu" else "cpu"


def check_table(dwi: DWI, frame: Frame) -> tuple[str, ...]:
    """A caution if the scan clearly contradicts its gradient table; the table is not changed."""
    try:
        verdict = judge(dwi, frame)
    except DWIError:
        return ()  # too few directions for the check
    return (
        () if verdict.table in ("fits", "cannot tell") else (f"Gradient table: {verdict.advice}",)
    )


def tell_caution(model: Model) -> None:
    """Report the caution of a checkpoint."""
    if model.caution and Rank.here().leads:
        log.warning("%s: %s", model.path.name, model.caution)


@contextmanager
def naming_scan(scan: Path) -> Iterator[None]:
    """Name the scan in the message of a `MemoryError`."""
    try:
        yield
    except MemoryError as error:
        if str(scan) in str(error):
            raise
        raise MemoryError(f"{scan}: out of memory: {error}.") from error


def read_input(
    files: ScanFiles,
    frame: Frame,
    shells: Sequence[float],
    device: str,
    memory: float,
    screen: Session,
) -> Input:
    """Read a scan, with fingerprints of its files, and check its gradient table.

    Parameters
    ----------
    files : ScanFiles
        The scan.
    frame : {"fsl", "voxel", "world"}
        Frame of its gradient table.
    shells : sequence of float
        b-values in s/mm2 of the shells to use; all shells if empty.
    device : str
        ``"cpu"`` or ``"cuda"``.
    memory : float
        Memory limit in bytes, of that device.
    screen : Session
        For the bar.
    """
    # on a CUDA device the limit is on the device memory, not on that of the signal
    spare = memory - PROGRAM_BYTES if device == "cpu" else math.inf
    dwi = read_scan(files, frame, screen, spare)
    inputs = input_files(files, frame)
    log.debug("%s: table %s, %s", files.scan, inputs["BVal"], inputs["BVec"])
    # before the computation, because the files can change during it
    fingerprints = {
        name: {"Name": path.name, "SHA256": sha256(path)} for name, path in inputs.items()
    }
    if shells:
        dwi = dwi.with_shells(tuple(sorted(set(shells))))
    _tell(dwi.notes, files)
    doubts = check_table(dwi, frame)
    dwi = replace(dwi, notes=(*dwi.notes, *doubts))
    log.debug("%r", dwi)
    return Input(dwi, files, fingerprints, doubts)


def describe_settings(
    model: Model, frame: Frame, shells: Sequence[float], voxel_size: float | None
) -> dict[str, Any]:
    """Settings that a map depends on, for its sidecar."""
    return {
        "Weights": {
            "Name": model.path.name,
            "SHA256": model.sha256,
            "Caution": model.caution,
        },
        "GradientFrame": frame,
        **({"Shells": list(shells)} if shells else {}),
        **({"ResampledTo": voxel_size} if voxel_size else {}),
    }


def page_settings(about: Mapping[str, Any], notes: Sequence[str]) -> dict[str, str]:
    """The settings in a sidecar, and the notes of a result, as shown on a page."""
    shown = {
        "tripq": __version__,
        **shown_settings(about),
        "Caution": "\n".join((about["Weights"]["Caution"], *about.get("Cautions", ()))),
        "Brain mask": str(about["BrainMask"]),
        "Notes": " ".join(notes),
    }
    return {name: text for name, text in shown.items() if text}


def input_files(files: ScanFiles, frame: Frame) -> dict[str, Path]:
    """The input files of a map, by their names in its sidecar."""
    bval, bvec = find_table(files.scan, files.bval, files.bvec, frame)
    mask = {} if files.mask is None else {"BrainMask": files.mask}
    return {"Scan": files.scan, "BVal": bval, "BVec": bvec, **mask}


def _tell(notes: Sequence[str], files: ScanFiles) -> None:
    for note in notes:
        log.info("%s: %s", files.scan.name, note)
