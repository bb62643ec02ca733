"""The derivatives dataset: its description, its contents, its summary and the group page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any, Literal

from tripq import __version__
from tripq.commands.files import ResultFiles
from tripq.commands.session import log
from tripq.infra.files import printable, read_json, write_json, write_text
from tripq.scans.bids import BIDS_VERSION, BIDSError, BIDSName, BIDSScan, dataset_name
from tripq.tasks.lesions.names import HEALTHY_HEADS, LABEL, lesion_result

Status = Literal["done", "done again", "there already", "left out", "failed"]

SUMMARY, PAGE = "summary.tsv", "report.html"
"""Names of the files about all scans."""

MAX_CANDIDATES = 10**9
"""Maximum number of lesion candidates of a scan; a larger number is an error."""

MAX_ML = 1e9
"""Maximum volume of the candidates of a scan in ml."""

_IGNORED = (SUMMARY, PAGE, "*_report.html")  # names outside the BIDS standard


@dataclass(frozen=True)
class Row:
    """One scan in the summary; the fields are the columns, of printable text."""

    participant_id: str
    session_id: str
    scan: str
    status: Status
    candidates: str = "n/a"
    volume_ml: str = "n/a"
    seconds: str = "n/a"
    reason: str = "n/a"

    @classmethod
    def of(cls, scan: BIDSScan, status: Status, **columns: str) -> Row:
        """Row of a scan; other columns than the given ones are not available."""
        return cls(
            participant_id=printable(f"sub-{scan.subject}"),
            session_id=printable(f"ses-{scan.session}") if scan.session else "n/a",
            scan=printable(scan.relative.as_posix()),
            status=status,
            **columns,
        )


def describe(out_dir: Path, bids_dir: Path, masks: Path | None = None) -> dict[Path, str]:
    """Write the description of the derivatives dataset, with links to its source datasets.

    Parameters
    ----------
    out_dir : Path
        Folder of the results; created if it does not exist.
    bids_dir : Path
        The dataset with the scans.
    masks : Path, optional
        The dataset with the brain masks.

    Returns
    -------
    dict of Path to str
        The names of these datasets in BIDS URIs.

    Raises
    ------
    BIDSError
        If the folder contains the description of another dataset.
    """
    path = out_dir / "dataset_description.json"
    about: dict[str, Any] = {
        "Name": "Lesions by tripq",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "tripq", "Version": __version__}],
    }
    known: dict[str, str] = {}
    if path.is_file():
        made_by = "something else"
        with suppress(ValueError, LookupError, TypeError):
            about = read_json(path)
            made_by = about["GeneratedBy"][0]["Name"]
            known = dict(about.get("DatasetLinks", {}))
        if made_by != "tripq":
            raise BIDSError(f"{path}: a dataset of {made_by}: choose another folder.")
    links = dict(known)
    names = {bids_dir: _link(links, bids_dir, "raw")}
    if masks is not None:
        names[masks] = _link(links, masks, "derivatives")
    if links != known:
        write_json(path, {**about, "DatasetLinks": links})
    ignored = out_dir / ".bidsignore"
    if not ignored.exists():
        write_text(ignored, "".join(f"{name}\n" for name in _IGNORED))
    return names


def _link(links: dict[str, str], source: Path, usual: str) -> str:
    """Name of a dataset in the links, added if missing; each name refers to one location."""
    name, place = dataset_name(source, usual), source.resolve().as_uri()
    for known, its_place in links.items():
        if its_place == place:
            return known
    free = (each for each in _numbered(name) if each not in links)
    links[new := next(free)] = place
    return new


def _numbered(name: str) -> Iterator[str]:
    """A name, followed by numbered variants of it."""
    yield name
    for number in count(2):
        yield f"{name}{number}"


def results_of(scan: BIDSScan, out_dir: Path) -> ResultFiles:
    """Files about a scan."""
    return ResultFiles.named(lambda *name: out_dir / lesion_result(scan, *name))


def candidate_columns(about: Mapping[str, Any], sidecar: Path) -> dict[str, str]:
    """Columns of the summary about the lesion candidates of a finished scan.

    Parameters
    ----------
    about : mapping
        The content of the sidecar.
    sidecar : Path
        Its path, for errors.

    Raises
    ------
    BIDSError
        If the numbers that tripq writes are missing or invalid.
    """
    number: Any = about.get("LesionCount")
    volume: Any = about.get("LesionVolumeMillilitres")
    are_numbers = type(number) is int and type(volume) in (int, float)  # True is neither
    if not are_numbers or not 0 <= number <= MAX_CANDIDATES or not 0 <= volume <= MAX_ML:
        raise BIDSError(
            f"{sidecar}: no valid number or volume of lesion candidates; --overwrite replaces it."
        )
    return {"candidates": str(number), "volume_ml": f"{volume:.4f}"}


def read_result(scan: BIDSScan, out_dir: Path) -> tuple[Row, dict[str, str]]:
    """Row of a finished scan in the summary, and its settings as shown on a page.

    Raises
    ------
    ValueError
        If its sidecar does not have the content that tripq writes; the message names the sidecar.
    """
    sidecar = results_of(scan, out_dir).sidecar
    about = read_json(sidecar)
    try:
        settings = shown_settings(about)
    except (LookupError, TypeError, ValueError) as error:
        raise BIDSError(
            f"{sidecar}: no valid settings of the map; --overwrite replaces it."
        ) from error
    return Row.of(scan, "there already", **candidate_columns(about, sidecar)), settings


def shown_settings(about: Mapping[str, Any]) -> dict[str, str]:
    """Settings that a map depends on, from its sidecar, as shown on a page."""
    weights = about["Weights"]
    shown = {
        "Weights": f"{weights['Name']} (SHA-256 {weights['SHA256']})",
        "Caution": str(weights["Caution"] or ""),
        HEALTHY_HEADS: str(about.get("HealthyHeads") or ""),
        "Gradient frame": str(about["GradientFrame"]),
        "Shells": ", ".join(f"b = {b_value:g}" for b_value in about.get("Shells", ())),
        "Resampled to": f"{about['ResampledTo']:g} mm" if "ResampledTo" in about else "",
    }
    return {name: text for name, text in shown.items() if text}


def find_others(out_dir: Path, bids_dir: Path, scans: Sequence[BIDSScan]) -> list[BIDSScan]:
    """Scans that have all results but are not, or no longer, in the dataset.

    Jobs that each see a part of the dataset can write to one folder.  A sidecar that does not name
    its scan is left out, with a warning.

    Parameters
    ----------
    out_dir : Path
        Folder of the results.
    bids_dir : Path
        The dataset.
    scans : sequence of BIDSScan
        The scans of the dataset.
    """
    known = {lesion_result(scan, "probseg", ".json") for scan in scans}
    others = []
    for sidecar in sorted(out_dir.glob("sub-*/**/sub-*_probseg.json")):
        place = sidecar.relative_to(out_dir)
        is_hidden = any(part.startswith(".") for part in place.parts)
        is_of_lesions = BIDSName.parse(place.name).entities.get("label") == LABEL
        if place in known or is_hidden or not is_of_lesions:
            continue
        try:
            name = read_json(sidecar)["Inputs"]["Scan"]["Name"]
            scan = BIDSScan(bids_dir, bids_dir / place.parent / Path(name).name)
            is_its_own = lesion_result(scan, "probseg", ".json") == place
        except (OSError, ValueError, LookupError, TypeError):
            is_its_own = False
        if not is_its_own:
            log.warning("%s: left out: it does not name its scan.", sidecar)
        elif results_of(scan, out_dir).are_there:
            others.append(scan)
    return others


def write_summary(out_dir: Path, rows: Sequence[Row]) -> None:
    """Write the table of all scans, sorted by name."""
    text = io.StringIO()
    columns = [column.name for column in fields(Row)]
    writer = csv.DictWriter(text, columns, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in sorted(rows, key=lambda row: row.scan))
    write_text(out_dir / SUMMARY, text.getvalue())


def write_page(
    out_dir: Path,
    results: Sequence[tuple[BIDSScan, Row]],
    settings: Sequence[Mapping[str, str]],
    title: str,
) -> None:
    """Write the group page.

    Parameters
    ----------
    out_dir : Path
        Folder of the results.
    results : sequence of (BIDSScan, Row)
        All scans.
    settings : sequence of mapping
        Settings of the results; if they differ, the page shows a caution.
    title : str
        Name of the dataset.
    """
    from tripq.tasks.lesions.pages.group import SubjectSummary, write_group_report

    summaries = [
        SubjectSummary.of_failure(row.scan, row.reason)
        if row.status == "failed"
        else SubjectSummary(
            row.scan,
            candidates=int(row.candidates),
            total_ml=float(row.volume_ml),
            page=lesion_result(scan, "report", ".html"),
        )
        for scan, row in results
        if row.status != "left out"
    ]
    shown = {"tripq": __version__, **_merge(settings)}
    write_group_report(out_dir / PAGE, summaries, shown, title=title)


def _merge(settings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """All values of each setting, and a caution if a setting has several values.

    >>> _merge([{"Gradient frame": "fsl"}, {"Gradient frame": "world"}])["Gradient frame"]
    'fsl; world'
    """
    names = dict.fromkeys(name for each in settings for name in each)
    values = {name: dict.fromkeys(each.get(name, "") for each in settings) for name in names}
    merged = {name: "; ".join(filter(None, texts)) for name, texts in values.items()}
    differing = [name for name, texts in values.items() if len(texts) > 1 and name != "Caution"]
    if differing:
        caution = f"The results were made with different settings ({', '.join(differing)})."
        merged["Caution"] = " ".join(filter(None, (caution, merged.get("Caution"))))
    return merged
