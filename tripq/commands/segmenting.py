"""Segmentation of one scan and its result files, shared by both segmenting commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

from tripq import __version__
from tripq.commands.applying import (
    choose_resources,
    describe_settings,
    input_files,
    naming_scan,
    page_settings,
    read_input,
    tell_caution,
)
from tripq.commands.derivatives import shown_settings
from tripq.commands.files import Addresses, ResultFiles, ScanFiles
from tripq.commands.options import Device
from tripq.commands.session import Session
from tripq.infra.files import read_json, sha256, staged, write_json
from tripq.scans import Frame, write_map
from tripq.tasks.lesions.command import LesionCommands
from tripq.tasks.lesions.listing import check_limits, find_candidates
from tripq.tasks.lesions.pages.subject import write_subject_report
from tripq.tasks.lesions.segmentation import Model, Segmentation, load_model, segment_scan

_DESCRIPTION = "Probability of a multiple sclerosis lesion, estimated from diffusion MRI"
_MASK_DESCRIPTION = (
    "Candidates for multiple sclerosis lesions: connected voxels with a probability at or above "
    "Threshold, together at least MinVolumeMillilitres"
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
    min_volume : float
        Minimum volume of a lesion candidate in ml.
    frame : {"fsl", "voxel", "world"}
        Frame of the gradient tables.
    device : str
        ``"cpu"`` or ``"cuda"``.
    memory : float
        Memory limit in bytes.
    shells : tuple of float
        b-values in s/mm2 of the shells to use; all shells if empty.
    voxel_size : float, optional
        Edge in mm of cubic voxels that scans are resampled to; by default only where needed.

    Raises
    ------
    ValueError
        If a limit of the candidates is invalid.
    """

    model: Model
    threshold: float
    min_volume: float
    frame: Frame
    device: str
    memory: float
    shells: tuple[float, ...] = ()
    voxel_size: float | None = None

    def __post_init__(self) -> None:
        check_limits(self.threshold, self.min_volume)

    @classmethod
    def choose(
        cls,
        weights: Path | None,
        threshold: float | None,
        min_volume: float | None,
        frame: Frame,
        device: Device,
        memory: float,
        threads: int | None,
        shells: Sequence[float] | None = None,
        voxel_size: float | None = None,
    ) -> Settings:
        """Read the checkpoint, and choose device, threads and memory for this computer."""
        chosen, memory = choose_resources(device, memory, threads)
        model = load_model(weights or LesionCommands().included_weights())
        tell_caution(model)
        return cls(
            model=model,
            threshold=model.threshold if threshold is None else threshold,
            min_volume=model.min_volume if min_volume is None else min_volume,
            frame=frame,
            device=chosen,
            memory=memory,
            shells=tuple(sorted(set(shells or ()))),
            voxel_size=voxel_size,
        )

    @cached_property
    def lasting(self) -> dict[str, Any]:
        """Settings that a map depends on, for its sidecar."""
        return {
            **describe_settings(self.model, self.frame, self.shells, self.voxel_size),
            **self.limits,
        }

    @property
    def limits(self) -> dict[str, float]:
        """Limits of the candidates, for both sidecars."""
        return {"Threshold": self.threshold, "MinVolumeMillilitres": self.min_volume}

    @property
    def remarks(self) -> dict[str, str]:
        """Remarks of the checkpoint for readers of a map, for its sidecar."""
        return {"HealthyHeads": self.model.healthy_heads} if self.model.healthy_heads else {}

    @property
    def shown(self) -> dict[str, str]:
        """The same settings as shown on a page."""
        return shown_settings({**self.lasting, **self.remarks})


@dataclass(frozen=True)
class Marked:
    """Number and volume of the lesion candidates of a scan, and the run time in seconds."""

    count: int
    volume_ml: float
    seconds: float


def segment_files(
    files: ScanFiles,
    results: ResultFiles,
    settings: Settings,
    screen: Session,
    addresses: Addresses | None = None,
) -> Marked:
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
    with naming_scan(files.scan):
        return _segment_files(files, results, settings, screen, addresses)


def _segment_files(
    files: ScanFiles,
    results: ResultFiles,
    settings: Settings,
    screen: Session,
    addresses: Addresses | None,
) -> Marked:
    start = perf_counter()
    given = read_input(
        files, settings.frame, settings.shells, settings.device, settings.memory, screen
    )
    dwi = given.dwi
    with screen.bar(f"segmenting {files.scan.name}", "voxels") as report:
        result = segment_scan(
            settings.model,
            dwi,
            voxel_size=settings.voxel_size,
            memory=settings.memory,
            device=settings.device,
            report=report,
        )
    cautions = given.tell(result.notes, result.cautions)
    candidates = find_candidates(dwi, result.probability, settings.threshold, settings.min_volume)
    volume_ml = float(sum(candidate.volume_ml for candidate in candidates))
    found = Marked(len(candidates), volume_ml, perf_counter() - start)
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
        **settings.remarks,
        "Device": settings.device,
        **given.described,
        "LesionCount": found.count,
        "LesionVolumeMillilitres": round(found.volume_ml, 4),
        "Notes": list(result.notes),
        **({"Cautions": list(cautions)} if cautions else {}),
    }
    about_mask = {
        "Description": _MASK_DESCRIPTION,
        **common,
        **({} if addresses is None else addresses.of_mask),
        **settings.limits,
    }
    _write(result, results, settings, about, about_mask)
    return found


def made_otherwise(results: ResultFiles, settings: Settings) -> list[str]:
    """Names of the settings in which finished results differ from the requested ones."""
    try:
        # earlier versions had no minimum volume
        about = {"MinVolumeMillilitres": 0.0, **read_json(results.sidecar)}
    except ValueError:
        return ["a sidecar that cannot be read"]
    wanted = {"Shells": None, "ResampledTo": None, **settings.lasting}
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
    now = input_files(files, frame)

    def is_same(name: str) -> bool:
        known = then.get(name)
        return (
            isinstance(known, dict)
            and name in now
            and now[name].is_file()
            and sha256(now[name]) == known.get("SHA256")
        )

    return [name for name in {**now, **then} if not is_same(name)]


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
        marked = result.marked(settings.threshold, settings.min_volume)
        write_map(marked, result.dwi, part / results.mask.name)
        write_json(part / results.mask_sidecar.name, about_mask)
        _write_report(part / results.report.name, result, settings, about)
        write_json(part / results.sidecar.name, about)


def _write_report(
    path: Path, result: Segmentation, settings: Settings, about: Mapping[str, Any]
) -> None:
    """Write the report page of a scan."""
    write_subject_report(
        path,
        result.dwi,
        result.probability,
        threshold=settings.threshold,
        min_volume=settings.min_volume,
        settings=page_settings(about, result.notes),
    )
