"""``tripq segment-bids``: the lesions of a BIDS dataset, as a BIDS App."""

from __future__ import annotations

import csv
import errno
import io
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from tripq import __version__
from tripq.bids import BIDS_VERSION, BIDSError, BIDSScan, find_scans
from tripq.commands import options, ranks
from tripq.commands.paths import ResultFiles, ScanFiles
from tripq.commands.session import FAILED, Session, explain, session
from tripq.commands.session import log as messages
from tripq.dwi.gradients import has_only_b0
from tripq.files import printable, read_json, write_json, write_text
from tripq.rank import Rank

if TYPE_CHECKING:
    from tripq.commands.lesions import Settings

Status = Literal["done", "there already", "left out", "failed"]


@dataclass(frozen=True)
class Row:
    """One scan in the summary; the fields are the columns, of printable text."""

    participant_id: str
    session_id: str
    scan: str
    status: Status
    lesions: str = "n/a"
    volume_ml: str = "n/a"
    seconds: str = "n/a"
    reason: str = "n/a"


class Sparingly:
    """Does a task as often as that takes no more than a hundredth of the time.

    What grows with the number of scans can so be done again and again while they are treated.
    """

    def __init__(self) -> None:
        self._not_before = -math.inf

    def __call__(self, task: Callable[[], object]) -> None:
        """Do the task, unless it was done not long ago."""
        start = perf_counter()
        if start >= self._not_before:
            task()
            end = perf_counter()
            self._not_before = end + 99 * (end - start)


def segment_bids(
    bids_dir: Annotated[Path, typer.Argument(help="The dataset.")],
    out_dir: Annotated[Path, typer.Argument(help="Where the results go: a dataset of its own.")],
    level: Annotated[
        Literal["participant"], typer.Argument(help="Level of the analysis: each participant.")
    ],
    participant_label: options.ParticipantLabel = None,
    session_label: options.SessionLabel = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Derivatives with a *_desc-brain_mask.nii.gz for every scan, on its grid.",
            show_default=options.FOUND_BRAIN,
        ),
    ] = None,
    frame: options.FrameOption = "fsl",
    shell: options.Shells = None,
    weights: options.Weights = None,
    threshold: options.Threshold = None,
    device: options.DeviceOption = "auto",
    memory: options.Memory = "4GB",  # type: ignore[assignment]  # parsed by the option
    threads: options.Threads = None,
    devices: ranks.Devices = 1,
    nodes: ranks.Nodes = 1,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: options.LogFile = None,
) -> None:
    """Lesion maps of all diffusion scans of a BIDS dataset.

    Call it again to go on where it stopped: finished scans are left alone.  A scan that cannot be
    used is reported and the others are not held up; a full disk ends it.  summary.tsv lists all of
    them, and report.html shows those of this call.  The exit status is 1 if any failed.

    For example:

        tripq segment-bids data data/derivatives/tripq participant

        tripq segment-bids data out participant --participant-label 01 02 --masks qsiprep

        tripq segment-bids data out participant --devices 4
    """
    if out_dir.resolve() == bids_dir.resolve():
        raise typer.BadParameter("the results must not go into the dataset itself.")
    with session(quiet=quiet, verbose=verbose, log_file=log) as screen:
        ranks.divide(devices, nodes, threads)
        rank = Rank.here()
        from tripq.commands.lesions import Settings
        from tripq.distributed import by_leader, connected, gather

        scans = find_scans(bids_dir, participant_label or (), session_label or ())
        if masks is not None and not masks.is_dir():
            raise BIDSError(f"{masks}: no such folder; --masks names a dataset of derivatives.")
        settings = Settings.choose(weights, threshold, frame, device, memory, threads, shell)
        summary = out_dir / "summary.tsv"
        with connected(rank):
            by_leader(rank, lambda: _describe(out_dir, bids_dir))
            own: dict[Path, Row] = {}
            sparingly = Sparingly()

            def tell() -> None:
                """Write what is known; several processes wait until one can do it for all."""
                if rank.count == 1 and own:
                    _write_summary(summary, tuple(own.values()))

            try:
                with screen.bar("all scans", "scans") as update:
                    for number, scan in enumerate(mine := rank.share(scans)):
                        update(number, len(mine))
                        row = _segment_one(scan, out_dir, masks, settings, overwrite, screen)
                        own[scan.relative] = row
                        sparingly(tell)
            except BaseException:
                with suppress(OSError, BIDSError):  # the first error is the reason
                    tell()
                raise
            rows = {place: row for some in gather(rank, own) for place, row in some.items()}
        if not rank.leads:
            return
        ordered = [rows[scan.relative] for scan in scans]
        _write_summary(summary, ordered)
        _write_page(out_dir, bids_dir, scans, ordered, settings)
        if not quiet:
            _show(ordered, screen)
        if any(row.status == "failed" for row in ordered):
            raise typer.Exit(FAILED)


def _segment_one(
    scan: BIDSScan,
    out_dir: Path,
    masks: Path | None,
    settings: Settings,
    overwrite: bool,
    screen: Session,
) -> Row:
    """Segment a scan unless that is done; whatever is wrong with it becomes its row."""
    from tripq.commands.lesions import made_otherwise, segment_files

    row = Row(
        participant_id=printable(f"sub-{scan.subject}"),
        session_id=printable(f"ses-{scan.session}") if scan.session else "n/a",
        scan=printable(scan.relative.as_posix()),
        status="done",
    )
    results = ResultFiles.named(lambda *name: out_dir / scan.result(*name))
    try:
        if results.are_there and not overwrite:
            if changed := made_otherwise(results, settings):
                raise BIDSError(
                    f"{results.sidecar}: made with other settings ({', '.join(changed)}): "
                    "take another folder, or --overwrite."
                )
            return replace(row, status="there already", **_numbers(results))
        files = _find_files(scan, masks)
        if files is None:
            reason = "no diffusion-weighted volume"
            messages.info("%s: left out: %s.", row.scan, reason)
            return replace(row, status="left out", reason=reason)
        sources = [
            f"bids:raw:{file.relative_to(scan.root).as_posix()}"
            for file in (files.scan, files.bval, files.bvec)
            if file is not None
        ]
        found = segment_files(files, results, settings, screen, sources)
    except Exception as error:
        if _is_full(error):
            raise  # the others could not be written, either
        # one scan must not stop the others, whatever is the matter with it
        reason = printable(explain(error))
        messages.error(reason)
        messages.debug("where it happened:", exc_info=True)
        return replace(row, status="failed", reason=reason)
    return replace(
        row,
        lesions=str(found.count),
        volume_ml=f"{found.volume_ml:.4f}",
        seconds=f"{found.seconds:.1f}",
    )


def _is_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, is that the disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def _find_files(scan: BIDSScan, masks: Path | None) -> ScanFiles | None:
    """Files of a scan; None if it has b0 volumes only, as scans for distortion correction do."""
    bval = scan.table(".bval")
    if has_only_b0(bval):
        return None
    mask = None if masks is None else scan.brain_mask(masks)
    return ScanFiles(scan.path, bval, scan.table(".bvec"), mask)


def _numbers(results: ResultFiles) -> dict[str, str]:
    """What the summary says about a scan that is there already."""
    about = read_json(results.sidecar)
    try:
        count, volume = int(about["LesionCount"]), float(about["LesionVolumeMillilitres"])
    except (LookupError, TypeError, ValueError, OverflowError):
        count, volume = -1, math.nan
    if count < 0 or not 0 <= volume < math.inf:
        raise BIDSError(f"{results.sidecar}: does not tell the lesions; --overwrite replaces it.")
    return {"lesions": str(count), "volume_ml": f"{volume:.4f}"}


def _describe(out_dir: Path, bids_dir: Path) -> None:
    """Say what the dataset of results is, unless it says so."""
    path = out_dir / "dataset_description.json"
    if path.is_file():
        try:
            made_by = read_json(path)["GeneratedBy"][0]["Name"]
        except (ValueError, LookupError, TypeError):
            made_by = "something else"
        if made_by != "tripq":
            raise BIDSError(f"{path}: a dataset of {made_by}: take another folder.")
        return
    write_json(
        path,
        {
            "Name": "Lesions by tripq",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "tripq", "Version": __version__}],
            "DatasetLinks": {"raw": bids_dir.resolve().as_uri()},
        },
    )


def _write_summary(path: Path, rows: Sequence[Row]) -> None:
    """Write the table; scans of earlier runs that this one does not treat keep their rows."""
    columns = [column.name for column in fields(Row)]
    table = {}
    if path.is_file():
        try:
            with path.open(encoding="utf-8", newline="") as file:
                earlier = csv.DictReader(file, delimiter="\t")
                table = {row["scan"]: row for row in earlier if list(row) == columns}
        except (ValueError, csv.Error) as error:
            raise BIDSError(f"{path}: no table that tripq wrote: {error}: remove it.") from error
    table |= {row.scan: asdict(row) for row in rows}
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table[scan] for scan in sorted(table))
    write_text(path, text.getvalue())


def _write_page(
    out_dir: Path,
    bids_dir: Path,
    scans: Sequence[BIDSScan],
    rows: Sequence[Row],
    settings: Settings,
) -> None:
    """Write the page of the group."""
    from tripq.report import SubjectSummary, write_group_report

    summaries = [
        SubjectSummary.of_failure(row.scan, row.reason)
        if row.status == "failed"
        else SubjectSummary(
            row.scan,
            lesions=int(row.lesions),
            total_ml=float(row.volume_ml),
            page=scan.result("report", ".html"),
        )
        for scan, row in zip(scans, rows, strict=True)
        if row.status != "left out"
    ]
    shown = {"tripq": __version__, **settings.shown}
    write_group_report(out_dir / "report.html", summaries, shown, title=bids_dir.resolve().name)


def _show(rows: Sequence[Row], screen: Session) -> None:
    table = Table()
    for name in ("scan", "status", "lesions", "ml", "seconds"):
        table.add_column(name, justify="left" if name in ("scan", "status") else "right")
    for row in rows:
        cells = (row.scan, row.status, row.lesions, row.volume_ml, row.seconds)
        table.add_row(*(escape(cell) for cell in cells))
    failed = [row for row in rows if row.status == "failed"]
    # most reasons name the file, and nobody wants to read that twice
    named = (
        row.reason if row.scan in row.reason else f"{row.scan}: {row.reason}" for row in failed
    )
    screen.show(table, *named)
