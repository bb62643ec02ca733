"""Segmentation of one scan and its result files, shared by both segmenting commands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from tripq import __version__
from tripq.commands.check import judge
from tripq.commands.derivatives import shown_settings
from tripq.commands.files import Addresses, ResultFiles, ScanFiles
from tripq.commands.options import Device
from tripq.commands.scans import read_scan
from tripq.commands.session import Session, log
from tripq.infra.files import read_json, sha256, staged, write_json
from tripq.infra.memory import spell_bytes
from tripq.infra.rank import Rank
from tripq.networks.apply import PROGRAM_BYTES
from tripq.scans import DWI, DWIError, Frame, write_map
from tripq.scans.read import find_table
from tripq.tasks.lesions.listing import find_lesions
from tripq.tasks.lesions.pages.subject import write_subject_report
from tripq.tasks.lesions.segmentation import Model, Segmentation, load_model, segment_scan
from tripq.tasks.lesions.weights import default_weights

_DESCRIPTION = "Probability of a multiple sclerosis lesion, estimated from diffusion MRI"
_MASK_DESCRIPTION = (
    "Voxels whose probability of a multiple sclerosis lesion is at or above Threshold"
)


@dataclass(frozen=True, eq=False)
class Settings:
    """How scans are segmented.

    Parameters
    ----------
    model : Model
        The network.
    threshold : float
        Minimum probability of a lesion voxel.
    frame : {"fsl", "voxel", "world"}
        Frame of the gradient tables.
    device : str
        ``"cpu"`` or ``"cuda"``.
    memory : float
        Memory limit in bytes.
    shells : tuple of float
        b-values in s/mm2 of the shells to use; all shells if empty.
    """

    model: Model
    threshold: float
    frame: Frame
    device: str
    memory: float
    shells: tuple[float, ...] = ()

    @classmethod
    def choose(
        cls,
        weights: Path | None,
        threshold: float | None,
        frame: Frame,
        device: Device,
        memory: float,
        threads: int | None,
        shells: Sequence[float] | None = None,
    ) -> Settings:
        """Read the checkpoint, and choose device, threads and memory for this computer."""
        use_threads(threads)
        chosen = choose_device(device)
        processes = Rank.here().local_count
        if chosen == "cpu":
            memory /= processes  # each CUDA device belongs to one process
        check_memory(memory, processes)
        model = load_model(weights or default_weights())
        if model.caution and Rank.here().leads:
            log.warning("%s: %s", model.path.name, model.caution)
        return cls(
            model=model,
            threshold=model.threshold if threshold is None else threshold,
            frame=frame,
            device=chosen,
            memory=memory,
            shells=tuple(sorted(set(shells or ()))),
        )

    @cached_property
    def lasting(self) -> dict[str, Any]:
        """Settings that a map depends on, for its sidecar."""
        return {
            "Weights": {
                "Name": self.model.path.name,
                "SHA256": self.model.sha256,
                "Caution": self.model.caution,
            },
            "Threshold": self.threshold,
            "GradientFrame": self.frame,
            **({"Shells": list(self.shells)} if self.shells else {}),
        }

    @property
    def shown(self) -> dict[str, str]:
        """The same settings as shown on a page."""
        return shown_settings(self.lasting)


@dataclass(frozen=True)
class Lesions:
    """Number and volume of the lesions of a scan, and the run time in seconds."""

    count: int
    volume_ml: float
    seconds: float


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


def check_memory(memory: float, processes: int = 1) -> None:
    """Reject a memory limit that is too small for the program itself."""
    if memory <= PROGRAM_BYTES:
        whose = "" if processes == 1 else f" for each of {processes} processes"
        raise ValueError(
            f"--memory: {spell_bytes(memory)}{whose} are not enough: the program itself takes "
            f"{spell_bytes(PROGRAM_BYTES)}, and a scan needs more. 4GB is the default."
        )


def check_table(dwi: DWI, frame: Frame) -> tuple[str, ...]:
    """A caution if the scan clearly contradicts its gradient table; the table is not changed."""
    try:
        verdict = judge(dwi, frame)
    except DWIError:
        return ()  # too few directions for the check
    return (
        () if verdict.table in ("fits", "cannot tell") else (f"Gradient table: {verdict.advice}",)
    )


def segment_files(
    files: ScanFiles,
    results: ResultFiles,
    settings: Settings,
    screen: Session,
    addresses: Addresses | None = None,
) -> Lesions:
    """Segment a scan and write all its result files, or none.

    Parameters
    ----------
    files : ScanFiles
        The scan.
    results : ResultFiles
        Paths of the results; existing files are replaced.
    settings : Settings
        Settings of the segmentation.
    screen : Session
        Shows the progress bar.
    addresses : Addresses, optional
        BIDS URIs of the files, if they belong to datasets.
    """
    try:
        return _segment_files(files, results, settings, screen, addresses)
    except MemoryError as error:
        if str(files.scan) in str(error):
            raise
        raise MemoryError(f"{files.scan}: out of memory: {error}.") from error


def _segment_files(
    files: ScanFiles,
    results: ResultFiles,
    settings: Settings,
    screen: Session,
    addresses: Addresses | None,
) -> Lesions:
    start = perf_counter()
    # on a CUDA device the limit is on the device memory, not on that of the signal
    spare = settings.memory - PROGRAM_BYTES if settings.device == "cpu" else math.inf
    dwi = read_scan(files, settings.frame, screen, spare)
    inputs = _inputs(files, settings.frame)
    log.debug("%s: table %s, %s", files.scan, inputs["BVal"], inputs["BVec"])
    # before the segmentation, because the files can change during it
    fingerprints = {
        name: {"Name": path.name, "SHA256": sha256(path)} for name, path in inputs.items()
    }
    if settings.shells:
        dwi = dwi.with_shells(settings.shells)
    _tell(dwi.notes, files)
    doubts = check_table(dwi, settings.frame)
    dwi = replace(dwi, notes=(*dwi.notes, *doubts))
    log.debug("%r", dwi)
    with screen.bar(f"segmenting {files.scan.name}", "voxels") as report:
        result = segment_scan(
            settings.model, dwi, memory=settings.memory, device=settings.device, report=report
        )
    cautions = (*doubts, *result.cautions)
    for caution in cautions:
        log.warning("%s: %s", files.scan, caution)
    _tell([note for note in result.notes[len(dwi.notes) :] if note not in cautions], files)
    lesions = find_lesions(dwi, result.probability, settings.threshold)
    volume_ml = float(sum(lesion.volume_ml for lesion in lesions))
    found = Lesions(len(lesions), volume_ml, perf_counter() - start)
    common = {
        "Type": "Lesion",
        "Manual": False,
        "GeneratedBy": [{"Name": "tripq", "Version": __version__}],
    }
    about = {
        "Description": _DESCRIPTION,
        **common,
        **({} if addresses is None else addresses.of_map),
        **settings.lasting,
        "Device": settings.device,
        "Inputs": fingerprints,
        "VoxelSizeMillimetres": [round(float(edge), 4) for edge in dwi.voxel_size],
        "BrainMask": "given" if files.mask is not None else "median_otsu of dipy, from b0",
        "LesionCount": found.count,
        "LesionVolumeMillilitres": round(found.volume_ml, 4),
        "Notes": list(result.notes),
        **({"Cautions": list(cautions)} if cautions else {}),
    }
    about_mask = {
        "Description": _MASK_DESCRIPTION,
        **common,
        **({} if addresses is None else addresses.of_mask),
        "Threshold": settings.threshold,
    }
    _write(result, results, settings, about, about_mask)
    return found


def made_otherwise(results: ResultFiles, settings: Settings) -> list[str]:
    """Names of the settings in which finished results differ from the requested ones."""
    try:
        about = read_json(results.sidecar)
    except ValueError:
        return ["a sidecar that cannot be read"]
    wanted = {"Shells": None, **settings.lasting}
    return [name for name, value in wanted.items() if about.get(name) != value]


def changed_inputs(about: Mapping[str, Any], files: ScanFiles, frame: Frame) -> list[str]:
    """Input files of a scan that have changed since its results were made.

    Parameters
    ----------
    about : mapping
        The sidecar of the results, with the SHA-256 of the input files.
    files : ScanFiles
        The current files of the scan.
    frame : {"fsl", "voxel", "world"}
        Frame of the gradient table.

    Returns
    -------
    list of str
        Names such as ``"BrainMask"``, including files that were added or removed.
    """
    then = about.get("Inputs")
    then = then if isinstance(then, dict) else {}
    now = _inputs(files, frame)

    def is_same(name: str) -> bool:
        known = then.get(name)
        return (
            isinstance(known, dict)
            and name in now
            and now[name].is_file()
            and sha256(now[name]) == known.get("SHA256")
        )

    return [name for name in {**now, **then} if not is_same(name)]


def _inputs(files: ScanFiles, frame: Frame) -> dict[str, Path]:
    """The input files of a map, by their names in its sidecar."""
    bval, bvec = find_table(files.scan, files.bval, files.bvec, frame)
    mask = {} if files.mask is None else {"BrainMask": files.mask}
    return {"Scan": files.scan, "BVal": bval, "BVec": bvec, **mask}


def _tell(notes: Sequence[str], files: ScanFiles) -> None:
    for note in notes:
        log.info("%s: %s", files.scan.name, note)


def _write(
    result: Segmentation,
    results: ResultFiles,
    settings: Settings,
    about: Mapping[str, Any],
    about_mask: Mapping[str, Any],
) -> None:
    """Write all result files of a scan, the sidecar of the map last."""
    with staged(results.sidecar.parent, last=results.sidecar.name) as part:
        write_map(result.probability, result.dwi, part / results.probability.name)
        lesion = result.probability >= settings.threshold
        write_map(lesion, result.dwi, part / results.mask.name)
        write_json(part / results.mask_sidecar.name, about_mask)
        _write_report(part / results.report.name, result, settings, about)
        write_json(part / results.sidecar.name, about)


def _write_report(
    path: Path, result: Segmentation, settings: Settings, about: Mapping[str, Any]
) -> None:
    """Write the report page of a scan."""
    shown = {
        "tripq": __version__,
        **settings.shown,
        "Caution": "\n".join((settings.model.caution, *about.get("Cautions", ()))),
        "Brain mask": str(about["BrainMask"]),
        "Notes": " ".join(result.notes),
    }
    write_subject_report(
        path,
        result.dwi,
        result.probability,
        threshold=settings.threshold,
        settings={name: text for name, text in shown.items() if text},
    )
