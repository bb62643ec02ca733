"""``tripq evaluate``: scores of maps against the known maps of the same scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from tripq import __version__
from tripq.commands import options
from tripq.commands.checks import check_results
from tripq.commands.session import FAILED, Session, explain, need, session
from tripq.commands.session import log as messages
from tripq.infra.files import staged, write_json, write_text
from tripq.scans.bids import BIDSError, BIDSScan, check_folder, find_namesakes
from tripq.tasks import DEFAULT_TASK, find_task

if TYPE_CHECKING:
    from tripq.tasks.scoring import Evaluation, MapScoring, ScanScores

_PAGE, _TABLE, _SCORES = "report.html", "scores.tsv", "scores.json"


def evaluate(
    maps: Annotated[
        Path,
        typer.Argument(
            help="Derivatives with the maps; for lesions the results of `tripq segment-bids`, "
            "*_label-lesion_probseg.nii.gz."
        ),
    ],
    truth: Annotated[
        Path,
        typer.Argument(
            help="Derivatives with the known maps; for lesions *_label-lesion_mask.nii.gz."
        ),
    ],
    out: Annotated[Path, options.output("scores")],
    task: Annotated[
        str,
        typer.Option(metavar="NAME", callback=options.check_task, help="Task of the maps."),
    ] = DEFAULT_TASK,
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
    min_volume: Annotated[
        float | None,
        options.min_volume(show_default="that of the JSON files beside the maps, otherwise 0"),
    ] = None,
    choose_limits: Annotated[
        bool,
        typer.Option(
            "--choose-limits",
            help="Choose both on these maps, by the highest Dice and the highest F1 of lesions, "
            "for the maps of other subjects.",
        ),
    ] = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: options.LogFile = None,
) -> None:
    """Scores of maps against known maps; of lesions, by voxel and by lesion.

    A map and its truth must have the same subfolder, BIDS entities and grid.  The command writes a
    report page (report.html), a table with one line per scan and one for all (scores.tsv), and the
    same for programs (scores.json).  A map that cannot be used is reported, the others are scored,
    and the exit status is 1.

    For example:

        tripq evaluate cohort/derivatives/tripq cohort/derivatives/truth -o scores

        tripq evaluate maps truth -o limits --participant-label 01 02 --choose-limits

        tripq evaluate maps truth -o scores --participant-label 03 07 --threshold 0.4
    """
    with session(quiet=quiet, verbose=verbose, log_file=log) as screen:
        names = (_PAGE, _TABLE, _SCORES)
        check_results([out / name for name in names], overwrite)
        if maps.resolve() == truth.resolve():
            raise BIDSError(f"{maps}: the maps and the truth must not be the same folder.")
        if masks is not None and not masks.is_dir():
            raise BIDSError(f"{masks}: no such folder; --masks names a derivatives dataset.")
        for folder in (maps, truth):
            check_folder(folder)
        scoring = find_task(task).scoring(threshold, min_volume, choose_limits)
        need(*scoring.needed)
        found = scoring.find_maps(maps, participant_label or ())
        known = scoring.find_known(truth, participant_label or ())
        read, failed = _read_all(scoring, found, known, maps, truth, masks, screen)
        with screen.bar("scoring"):
            evaluation = scoring.score(read)
            _write(out, maps, truth, evaluation, failed)
        if not quiet:
            screen.show(
                show_scores(evaluation),
                *(f"{path}: {reason}" for path, reason in failed.items()),
                *(f"  {out / name}" for name in names),
            )
        if failed:
            raise typer.Exit(FAILED)


def show_scores(evaluation: Evaluation) -> Table:
    """Table of scores for the screen: in 80 columns, names of scans fold, and no word is cut."""
    table = Table(caption=evaluation.caption, box=SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column("scan", overflow="fold")
    for title in evaluation.shown.values():
        table.add_column(title, justify="right", no_wrap=" " not in title)
    for row in evaluation.listed or evaluation.rows:
        table.add_row(escape(row.name), *(_cell(row, key) for key in evaluation.shown))
    return table


def _cell(row: ScanScores, key: str) -> str:
    value = row.columns[key]
    return str(value) if isinstance(value, int) else f"{value:.3f}".replace("nan", "n/a")


def _read_all(
    scoring: MapScoring[Any],
    found: Sequence[BIDSScan],
    known: Sequence[Path],
    maps: Path,
    truth: Path,
    masks: Path | None,
    screen: Session,
) -> tuple[list[Any], dict[str, str]]:
    """Maps that can be used, and the errors of the others."""
    shared = find_namesakes(found, lambda scan: frozenset(scoring.name(scan).split("_")))
    read: list[Any] = []
    used: set[Path] = set()
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
                one, path = scoring.read(scan, truth, masks)
            except Exception as error:
                # no error in one map may stop the others
                reason = explain(error)
                messages.error(reason)
                messages.debug("traceback:", exc_info=True)
                failed[scan.relative.as_posix()] = reason
                continue
            read.append(one)
            used.add(path)
    if not read:
        raise BIDSError(f"{maps}: none of {len(found)} maps can be scored.")
    without = sorted(path.relative_to(truth).as_posix() for path in {*known} - used)
    if without:
        messages.warning(
            "%s: %d of %d %s have no scored map, such as %s.",
            *(truth, len(without), len(known), scoring.known, without[0]),
        )
    return read, failed


def _write(
    out: Path, maps: Path, truth: Path, evaluation: Evaluation, failed: Mapping[str, str]
) -> None:
    """Write all three files, or none."""
    from tripq.tasks.scoring import json_columns, scores_tsv

    settings = {"tripq": __version__, "Maps": str(maps), "Truth": str(truth)}
    if failed:
        settings["caution"] = f"Not scored: {', '.join(failed)}."
    *subjects, pooled = ({"scan": row.name, **json_columns(row)} for row in evaluation.rows)
    with staged(out, last=_SCORES) as part:
        write_text(part / _TABLE, scores_tsv(evaluation.rows))
        evaluation.write_page(part / _PAGE, settings, maps.resolve().name)
        write_json(
            part / _SCORES,
            {
                "tripq": __version__,
                "maps": str(maps),
                "truth": str(truth),
                **evaluation.settings,
                "scans": subjects,
                "pooled": pooled,
                "failed": dict(failed),
            },
        )
