"""``tripq evaluate``: lesion maps against known lesions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tripq import __version__
from tripq.commands import options
from tripq.commands.session import FAILED, Session, explain, need, session
from tripq.commands.session import log as messages
from tripq.infra.files import staged, write_json, write_text
from tripq.scans.bids import BIDSError, BIDSScan, find_namesakes
from tripq.tasks.lesions.names import find_lesion_maps, find_lesion_masks

if TYPE_CHECKING:
    from tripq.tasks.lesions.maps import LesionMap, MapFiles, MapScores

_PAGE, _TABLE, _SCORES = "report.html", "scores.tsv", "scores.json"
_SHOWN = (
    ("roc_auc", "ROC AUC"),
    ("average_precision", "AP"),
    ("dice", "Dice"),
    ("lesion_sensitivity", "sensitivity"),
    ("lesion_precision", "precision"),
    ("lesion_f1", "F1"),
    ("true_ml", "true ml"),
    ("found_ml", "found ml"),
)


def evaluate(
    maps: Annotated[
        Path,
        typer.Argument(help="Results of `tripq segment-bids`: *_label-lesion_probseg.nii.gz."),
    ],
    truth: Annotated[
        Path, typer.Argument(help="Derivatives with the known *_label-lesion_mask.nii.gz.")
    ],
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the scores.")
    ],
    participant_label: options.ParticipantLabel = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Derivatives with a *_desc-brain_mask.nii.gz for every map; voxels outside the "
            "mask are not scored.",
            show_default="those beside the truth, otherwise all voxels",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Minimum probability of a lesion voxel; choose it on other subjects.",
            show_default="that of the JSON files beside the maps",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: options.LogFile = None,
) -> None:
    """Scores of lesion maps against known lesions, by voxel and by lesion.

    A map and its truth must have the same subfolder, BIDS entities and grid.  The command writes a
    report page (report.html), a table with one line per scan and one for all (scores.tsv), and the
    same for programs (scores.json).  A map that cannot be used is reported, the others are scored,
    and the exit status is 1.

    For example:

        tripq evaluate cohort/derivatives/tripq cohort/derivatives/truth -o scores

        tripq evaluate maps truth -o scores --participant-label 03 07 --threshold 0.4
    """
    with session(quiet=quiet, verbose=verbose, log_file=log) as screen:
        need("panoptica")
        names = (_PAGE, _TABLE, _SCORES)
        if not overwrite and (there := [out / name for name in names if (out / name).exists()]):
            raise FileExistsError(0, "exists already; --overwrite replaces it.", str(there[0]))
        if maps.resolve() == truth.resolve():
            raise BIDSError(f"{maps}: the maps and the truth must not be the same folder.")
        if masks is not None and not masks.is_dir():
            raise BIDSError(f"{masks}: no such folder; --masks names a derivatives dataset.")
        from tripq.tasks.lesions.maps import score_maps

        found = find_lesion_maps(maps, participant_label or ())
        known = find_lesion_masks(truth, participant_label or ())
        read, chosen, failed = _read_all(found, known, maps, truth, masks, threshold, screen)
        with screen.bar("scoring"):
            rows = score_maps(read, chosen)
            _write(out, maps, truth, read, chosen, rows, failed)
        if not quiet:
            screen.show(
                show_scores(rows, chosen),
                *(f"{path}: {reason}" for path, reason in failed.items()),
                *(f"  {out / name}" for name in names),
            )
        if failed:
            raise typer.Exit(FAILED)


def show_scores(rows: Sequence[MapScores], threshold: float) -> Table:
    """Table of scores for the screen."""
    table = Table(
        caption=f"lesion: a probability of {threshold:.3g} or more; AP: average precision; "
        "sensitivity, precision and F1 refer to whole lesions"
    )
    table.add_column("scan")
    for _, title in _SHOWN:
        table.add_column(title, justify="right")
    for row in rows:
        cells = (f"{row.columns[key]:.3f}".replace("nan", "n/a") for key, _ in _SHOWN)
        table.add_row(escape(row.name), *cells)
    return table


def _read_all(
    found: Sequence[BIDSScan],
    known: Sequence[Path],
    maps: Path,
    truth: Path,
    masks: Path | None,
    threshold: float | None,
    screen: Session,
) -> tuple[list[LesionMap], float, dict[str, str]]:
    """Maps that can be used, their threshold, and the errors of the others."""
    from tripq.tasks.lesions.maps import find_truth, read_map, read_threshold, scan_name

    shared = find_namesakes(found, lambda scan: frozenset(scan_name(scan).split("_")))
    read: list[LesionMap] = []
    used: list[MapFiles] = []
    thresholds: dict[float, Path] = {}
    failed: dict[str, str] = {}
    with screen.bar("reading", "maps") as update:
        for number, scan in enumerate(found):
            update(number, len(found))
            try:
                if scan.relative in shared:
                    raise BIDSError(
                        f"{scan.path}: a map of the same scan as {shared[scan.relative]}: keep one "
                        "of them."
                    )
                files = find_truth(scan, truth, masks)
                lesion_map = read_map(files)
                if threshold is None:
                    thresholds.setdefault(read_threshold(scan.path), scan.path)
            except Exception as error:
                # no error in one map may stop the others
                reason = explain(error)
                messages.error(reason)
                messages.debug("traceback:", exc_info=True)
                failed[scan.relative.as_posix()] = reason
                continue
            if files.brain is None:
                messages.info("%s: no brain mask: all voxels are scored.", files.name)
            if lesion_map.outside:
                messages.warning(
                    "%s: %d lesion voxels are outside the brain mask and are not scored.",
                    *(files.lesion, lesion_map.outside),
                )
            read.append(lesion_map)
            used.append(files)
    if not read:
        raise BIDSError(f"{maps}: none of {len(found)} maps can be scored.")
    if threshold is None and len(thresholds) > 1:
        listed = ", ".join(f"{value:g} ({path.name})" for value, path in thresholds.items())
        raise BIDSError(f"{maps}: the maps have several thresholds, {listed}: give --threshold.")
    without = sorted(
        path.relative_to(truth).as_posix() for path in {*known} - {files.lesion for files in used}
    )
    if without:
        messages.warning(
            "%s: %d of %d lesion masks have no scored map, such as %s.",
            *(truth, len(without), len(known), without[0]),
        )
    return read, next(iter(thresholds)) if threshold is None else threshold, failed


def _write(
    out: Path,
    maps: Path,
    truth: Path,
    read: Sequence[LesionMap],
    threshold: float,
    rows: Sequence[MapScores],
    failed: Mapping[str, str],
) -> None:
    """Write all three files, or none."""
    from tripq.tasks.lesions.maps import scores_tsv
    from tripq.tasks.lesions.pages.evaluation import write_evaluation_report

    settings = {"tripq": __version__, "Maps": str(maps), "Truth": str(truth)}
    if failed:
        settings["caution"] = f"Not scored: {', '.join(failed)}."
    *subjects, pooled = (
        {"scan": row.name, **{key: _number(value) for key, value in row.columns.items()}}
        for row in rows
    )
    with staged(out, last=_SCORES) as part:
        write_text(part / _TABLE, scores_tsv(rows))
        write_evaluation_report(
            part / _PAGE,
            [lesion_map.subject for lesion_map in read],
            threshold,
            settings,
            title=maps.resolve().name,
        )
        write_json(
            part / _SCORES,
            {
                "tripq": __version__,
                "maps": str(maps),
                "truth": str(truth),
                "threshold": threshold,
                "scans": subjects,
                "pooled": pooled,
                "failed": dict(failed),
            },
        )


def _number(value: float) -> float | None:
    """Replace NaN, which JSON does not have, by None."""
    return None if math.isnan(value) else value
