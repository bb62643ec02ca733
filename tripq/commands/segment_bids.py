"""``tripq segment-bids``: the lesion candidates of a BIDS dataset, as a BIDS App."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer
from rich.markup import escape
from rich.table import Table

from tripq.commands import options, ranks
from tripq.commands.checks import check_memory
from tripq.commands.derivatives import (
    Row,
    candidate_columns,
    describe,
    find_others,
    read_result,
    results_of,
    write_page,
    write_summary,
)
from tripq.commands.files import Addresses, ResultFiles, ScanFiles
from tripq.commands.session import FAILED, Session, explain, session
from tripq.commands.session import log as messages
from tripq.infra.files import check_writable, printable, read_json, require_file
from tripq.infra.rank import Rank
from tripq.scans import Frame
from tripq.scans.bids import (
    BIDSError,
    BIDSScan,
    bids_uri,
    check_folder,
    find_brain_mask,
    find_namesakes,
    find_scans,
)
from tripq.scans.gradients import has_only_b0
from tripq.tasks.lesions.names import lesion_result

if TYPE_CHECKING:
    from tripq.commands.segmenting import Settings

Finished: TypeAlias = tuple[Row, Mapping[str, str]]
"""Row of a scan with a result, and the settings of the result as shown on a page."""

_NO_WEIGHTING = "no diffusion-weighted volume"


class Sparingly:
    """Runs a repeated task in at most 1 % of the total time.

    A task whose cost grows with the number of scans can thus be repeated during the run.
    """

    def __init__(self) -> None:
        self._not_before = -math.inf

    def __call__(self, task: Callable[[], object]) -> None:
        """Run the task, unless its last run is too recent."""
        start = perf_counter()
        if start >= self._not_before:
            task()
            end = perf_counter()
            self._not_before = end + 99 * (end - start)


def segment_bids(
    bids_dir: Annotated[Path, typer.Argument(help="The dataset.")],
    out_dir: Annotated[
        Path, typer.Argument(help="Folder for the results, a separate derivatives dataset.")
    ],
    level: Annotated[
        Literal["participant", "group"],
        typer.Argument(
            help="'participant': segment the scans.  'group': collect all results in summary.tsv "
            "and report.html."
        ),
    ],
    participant_label: options.ParticipantLabel = None,
    session_label: options.SessionLabel = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Derivatives with a *_desc-brain_mask.nii.gz for every scan, on its grid; the "
            "path is relative to the working directory or to the dataset.",
            show_default=f"those beside the scans, otherwise {options.FOUND_BRAIN}",
        ),
    ] = None,
    frame: options.FrameOption = "fsl",
    shell: options.Shells = None,
    voxel_size: options.VoxelSize = None,
    weights: options.Weights = None,
    threshold: options.Threshold = None,
    min_volume: options.MinVolume = None,
    device: options.DeviceOption = "auto",
    memory: options.Memory = "4GB",  # type: ignore[assignment]  # parsed by the option
    threads: options.ThreadsOfProcess = None,
    cpus: options.CPUs = None,
    devices: ranks.Devices = 1,
    nodes: ranks.Nodes = 1,
    work_dir: options.WorkDir = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: options.LogFile = None,
    version: options.Version = False,
) -> None:
    """Maps of lesion candidates of all diffusion scans of a BIDS dataset.

    A second call resumes an interrupted one: finished scans are skipped, unless one of their input
    files has changed.  A scan that cannot be used is reported and the others are segmented; a full
    disk ends the command.  The exit status is 1 if any scan failed.

    summary.tsv and report.html list all scans.  With --participant-label or --session-label, as in
    cluster jobs, they are not written: the level 'group' writes them from all results.

    For example:

        tripq segment-bids data data/derivatives/tripq participant

        tripq segment-bids data out participant --devices 4

        tripq segment-bids data out participant --participant-label 01 02 --masks qsiprep

        tripq segment-bids data out group
    """
    if out_dir.resolve() == bids_dir.resolve():
        raise typer.BadParameter("the folder of the results must not be the dataset itself.")
    is_part = bool(participant_label or session_label)
    if level == "group" and is_part:
        raise typer.BadParameter("the level 'group' collects all results: omit the labels.")
    with session(quiet=quiet, verbose=verbose, log_file=log) as screen:
        if work_dir is not None:
            options.use_work_dir(work_dir)
        if level == "group":
            rows = _gather(Places(bids_dir, out_dir), frame) if Rank.here().leads else []
            remarks: list[str] = []
        else:
            check_memory(memory)
            check_folder(bids_dir)
            check_writable(out_dir)
            if weights is not None:
                require_file(weights)
            masks = None if masks is None else _find_masks(masks, bids_dir)
            threads = options.threads_of_process(threads, cpus, devices)
            ranks.divide(devices, nodes, threads)
            scans = find_scans(bids_dir, participant_label or (), session_label or ())
            from tripq.commands.segmenting import Settings

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
            remarks = [*settings.remarks.values()]
            places = Places(bids_dir, out_dir, masks)
            rows = _segment_all(scans, places, settings, overwrite, screen, is_whole=not is_part)
        if not Rank.here().leads:
            return
        if not quiet:
            _show(rows, remarks, screen)
        if any(row.status == "failed" for row in rows):
            raise typer.Exit(FAILED)


@dataclass(frozen=True)
class Places:
    """Folders of a call.

    Parameters
    ----------
    data : Path
        The dataset.
    results : Path
        The derivatives dataset of the results.
    masks : Path or None
        Derivatives with the brain masks; None for those beside the scans.
    """

    data: Path
    results: Path
    masks: Path | None = None


def _find_masks(masks: Path, bids_dir: Path) -> Path:
    """The folder of ``--masks``, relative to the working directory or to the dataset."""
    found = {path.resolve(): path for path in (bids_dir / masks, masks) if path.is_dir()}
    if not found:
        raise BIDSError(
            f"{masks}: no such folder, neither here nor in {bids_dir}; --masks names a "
            "derivatives dataset."
        )
    if len(found) > 1:
        raise BIDSError(
            f"{masks}: ambiguous: {' and '.join(map(str, found))} exist; give --masks one of these "
            "paths."
        )
    return next(iter(found.values()))


def _refuse_namesakes(scans: Sequence[BIDSScan]) -> dict[Path, Row]:
    """Rows of scans whose results would have the same names as another's; each is an error."""
    shared = find_namesakes(scans, lambda scan: lesion_result(scan, "probseg", ".nii.gz"))
    rows = {}
    for scan in scans:
        if scan.relative in shared:
            reason = printable(
                f"{scan.path}: its results would have the same names as those of "
                f"{shared[scan.relative]}: rename the scans, or keep one of them."
            )
            rows[scan.relative] = Row.of(scan, "failed", reason=reason)
            if Rank.here().leads:
                messages.error(reason)
    return rows


def _segment_all(
    scans: Sequence[BIDSScan],
    places: Places,
    settings: Settings,
    overwrite: bool,
    screen: Session,
    *,
    is_whole: bool,
) -> list[Row]:
    """Segment scans, divided among the processes; rank 0 returns all rows.

    Rank 0 writes the summary and the group page if the scans are the whole dataset.
    """
    from tripq.infra.distributed import by_leader, connected, gather

    rank = Rank.here()
    refused = _refuse_namesakes(scans)
    with connected(rank):
        names = by_leader(rank, lambda: describe(places.results, places.data, places.masks))
        others: list[BIDSScan] = []
        earlier: dict[Path, Finished] = {}
        if is_whole and rank.leads:
            others = find_others(places.results, places.data, scans)
            earlier = _read_finished([*scans, *others], places.results)
        own: dict[Path, Row] = {}
        sparingly = Sparingly()

        def tell() -> None:
            """Write the summary so far; with several processes it is written only at the end."""
            if is_whole and rank.count == 1 and own:
                known = {place: row for place, (row, _) in earlier.items()} | own
                write_summary(places.results, [*known.values()])

        try:
            with screen.bar("all scans", "scans") as update:
                for number, scan in enumerate(mine := rank.share(scans)):
                    update(number, len(mine))
                    own[scan.relative] = refused.get(scan.relative) or _segment_one(
                        scan, places, names, settings, overwrite, screen
                    )
                    sparingly(tell)
        except BaseException:
            with suppress(OSError, BIDSError):  # the first error is the one to report
                tell()
            raise
        rows = {place: row for some in gather(rank, own) for place, row in some.items()}
    if not rank.leads:
        return []
    if not is_whole:
        messages.info("summary.tsv and report.html not changed: the level 'group' writes them.")
        return [rows[scan.relative] for scan in scans]
    of_others = [earlier[scan.relative] for scan in others]
    ordered = [rows[scan.relative] for scan in scans] + [row for row, _ in of_others]
    shown = [settings.shown, *(shown for _, shown in of_others if shown)]
    _write_group(places, [*scans, *others], ordered, shown)
    return ordered


def _gather(places: Places, frame: Frame) -> list[Row]:
    """Write the summary and the group page of all results; return their rows."""
    if not places.results.is_dir():
        raise BIDSError(f"{places.results}: no such folder; the level 'participant' creates it.")
    scans = find_scans(places.data)
    describe(places.results, places.data)
    refused = _refuse_namesakes(scans)
    everything = [*scans, *find_others(places.results, places.data, scans)]
    finished = _read_finished(everything, places.results)
    rows = []
    for scan in everything:
        row = refused.get(scan.relative)
        if row is None and scan.relative in finished:
            row, _ = finished[scan.relative]
        elif row is None:
            row = _without_result(scan, frame)
        if row.status == "failed" and scan.relative not in refused:
            messages.error(_named(row))
        rows.append(row)
    _write_group(places, everything, rows, [shown for _, shown in finished.values() if shown])
    return rows


def _read_finished(scans: Sequence[BIDSScan], out_dir: Path) -> dict[Path, Finished]:
    """Rows of the scans with results, and their settings as shown on a page."""
    finished: dict[Path, Finished] = {}
    for scan in scans:
        if results_of(scan, out_dir).are_there:
            try:
                finished[scan.relative] = read_result(scan, out_dir)
            except (OSError, ValueError) as error:
                reason = printable(explain(error))
                finished[scan.relative] = Row.of(scan, "failed", reason=reason), {}
    return finished


def _without_result(scan: BIDSScan, frame: Frame) -> Row:
    """Row of a scan without a result, with the reason as far as its table gives one."""
    try:
        bval, bvec = scan.gradient_table(frame)
        if has_only_b0(bval or bvec):
            return Row.of(scan, "left out", reason=_NO_WEIGHTING)
        reason = "no result: run the level 'participant', which creates it or reports the reason"
    except (OSError, ValueError) as error:
        reason = printable(explain(error))
    return Row.of(scan, "failed", reason=reason)


def _write_group(
    places: Places,
    scans: Sequence[BIDSScan],
    rows: Sequence[Row],
    shown: Sequence[Mapping[str, str]],
) -> None:
    """Write the summary and the group page."""
    write_summary(places.results, rows)
    title = places.data.resolve().name
    write_page(places.results, [*zip(scans, rows, strict=True)], shown, title)


def _segment_one(
    scan: BIDSScan,
    places: Places,
    names: Mapping[Path, str],
    settings: Settings,
    overwrite: bool,
    screen: Session,
) -> Row:
    """Segment a scan, unless it is finished; an error becomes a row with the reason."""
    from tripq.commands.segmenting import changed_inputs, made_otherwise, segment_files

    results = results_of(scan, places.results)
    changed: list[str] = []
    try:
        files = _find_files(scan, places.masks, settings.frame)
        if files is None:
            messages.info("%s: left out: %s.", scan.path, _NO_WEIGHTING)
            return Row.of(scan, "left out", reason=_NO_WEIGHTING)
        if results.are_there and not overwrite:
            if otherwise := made_otherwise(results, settings):
                raise BIDSError(
                    f"{results.sidecar}: made with other settings ({', '.join(otherwise)}): "
                    "choose another folder, or --overwrite."
                )
            about = read_json(results.sidecar)
            changed = changed_inputs(about, files, settings.frame)
            if not changed:
                return Row.of(scan, "there already", **candidate_columns(about, results.sidecar))
            messages.info(
                "%s: segmented again, because of changed files: %s.", scan.path, ", ".join(changed)
            )
        if places.masks is None and files.mask is not None:
            messages.info("%s: brain mask beside it: %s.", scan.path.name, files.mask.name)
        addresses = _address(files, results, places, names)
        found = segment_files(files, results, settings, screen, addresses)
    except Exception as error:
        if _is_full(error):
            raise  # other results could not be written either
        # no error in one scan may stop the others
        reason = printable(explain(error))
        messages.error(reason)
        messages.debug("traceback:", exc_info=True)
        return Row.of(scan, "failed", reason=reason)
    return Row.of(
        scan,
        "done again" if changed else "done",
        candidates=str(found.count),
        volume_ml=f"{found.volume_ml:.4f}",
        seconds=f"{found.seconds:.1f}",
        reason=f"changed: {', '.join(changed)}" if changed else "n/a",
    )


def _is_full(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def _find_files(scan: BIDSScan, masks: Path | None, frame: Frame) -> ScanFiles | None:
    """Files of a scan; None if it has only b0 volumes, as scans for distortion correction."""
    bval, bvec = scan.gradient_table(frame)
    if has_only_b0(bval or bvec):
        return None
    return ScanFiles(scan.path, bval, bvec, find_brain_mask(scan, scan.root, masks))


def _address(
    files: ScanFiles, results: ResultFiles, places: Places, names: Mapping[Path, str]
) -> Addresses:
    """BIDS URIs of the files of a scan; `names` are the names of the datasets."""

    def uri(path: Path, root: Path) -> str:
        return bids_uri(names[root], path.relative_to(root))

    return Addresses(
        scan=uri(files.scan, places.data),
        tables=tuple(uri(path, places.data) for path in (files.bval, files.bvec) if path),
        mask=None if files.mask is None else uri(files.mask, places.masks or places.data),
        probability=bids_uri("", results.probability.relative_to(places.results)),
    )


def _show(rows: Sequence[Row], remarks: Sequence[str], screen: Session) -> None:
    table = Table()
    for name in ("scan", "status", "candidates", "ml", "seconds"):
        table.add_column(name, justify="left" if name in ("scan", "status") else "right")
    for row in rows:
        cells = (row.scan, row.status, row.candidates, row.volume_ml, row.seconds)
        table.add_row(*(escape(cell) for cell in cells))
    failed = (_named(row) for row in rows if row.status == "failed")
    screen.show(table, *remarks, *failed)


def _named(row: Row) -> str:
    """The error of a scan, with its name unless the reason contains it already."""
    return row.reason if row.scan in row.reason else f"{row.scan}: {row.reason}"
