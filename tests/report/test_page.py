"""A page is whole, asks for nothing, and runs nothing but the programs that tripq put into it."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tripq.report.page import ReportError
from tripq.tasks.lesions.evaluated import EvaluatedSubject
from tripq.tasks.lesions.names import HEALTHY_HEADS
from tripq.tasks.lesions.pages.evaluation import write_evaluation_report
from tripq.tasks.lesions.pages.group import SubjectSummary, write_group_report
from tripq.tasks.lesions.pages.subject import write_subject_report

HOSTILE = "<script>alert(1)</script>"
SETTINGS = {
    "caution": f"simulated {HOSTILE}",
    HEALTHY_HEADS: f"healthy {HOSTILE}",
    f"network {HOSTILE}": f"'\"&{HOSTILE}",
}
ADDRESSES = {
    "src",
    "href",
    "action",
    "data",
    "poster",
    "srcset",
    "background",
    "cite",
    "formaction",
}


def write_all(folder: Path, case: Any) -> dict[str, Path]:
    """One page of each kind, with hostile words wherever others give words."""
    pages = {kind: folder / f"{kind}.html" for kind in ("subject", "group", "evaluation")}
    write_subject_report(
        pages["subject"],
        case.dwi,
        case.probability,
        threshold=0.5,
        settings=SETTINGS,
        lesion=case.truth,
    )
    rows = [
        SubjectSummary(HOSTILE, 3, 1.5, page=Path("javascript:alert(1)")),
        SubjectSummary.of_failure(HOSTILE, HOSTILE),
    ]
    write_group_report(pages["group"], rows, SETTINGS, title=HOSTILE)
    subject = EvaluatedSubject(HOSTILE, case.dwi.mask, case.probability, case.truth, 0.125)
    write_evaluation_report(pages["evaluation"], [subject], 0.5, SETTINGS, title=HOSTILE)
    return pages


@pytest.fixture(scope="module")
def pages(
    tmp_path_factory: pytest.TempPathFactory, case: Any, read: Callable[[Path], Any]
) -> dict[str, Any]:
    written = write_all(tmp_path_factory.mktemp("pages"), case)
    return {kind: read(path) for kind, path in written.items()}


KINDS = pytest.mark.parametrize("kind", ["subject", "group", "evaluation"])


@KINDS
def test_a_page_names_no_other_place(pages: dict[str, Any], kind: str) -> None:
    page = pages[kind]
    # Comments of the viewer hold addresses; the policy keeps it from following any.
    viewer = (files("tripq.report") / "niivue/niivue.umd.js").read_text(encoding="utf-8")
    ours = page.source.replace(viewer, "")
    assert "://" not in ours
    assert "@import" not in ours
    for element in page.root.iter():
        assert element.tag not in {"link", "base", "iframe", "object", "embed"}
        for name, value in element.attrib.items():
            assert not str(name).startswith("on"), f"a program in {name}"
            if str(name).rpartition("}")[2] in ADDRESSES:
                assert value.startswith(("data:image/", "#", "./")), f"{name}={value[:60]}"


@KINDS
def test_words_of_others_are_words(pages: dict[str, Any], kind: str) -> None:
    page = pages[kind]
    assert all("alert(1)" not in program for program in page.programs())
    (title,) = (e.text for e in page.root.iter("h1"))
    assert "<script>alert(1)" in title
    for words in (f"Caution: simulated {HOSTILE}", f"network {HOSTILE}", f"'\"&{HOSTILE}"):
        assert words in page.text


@KINDS
def test_the_policy_allows_the_programs_of_the_page_alone(pages: dict[str, Any], kind: str) -> None:
    page = pages[kind]
    (meta,) = (e for e in page.root.iter("meta") if e.get("http-equiv"))
    policy = {
        name: set(values)
        for name, *values in (part.split() for part in meta.get("content").split(";"))
    }
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == {"'none'"}
    assert policy["connect-src"] == policy["img-src"] == {"data:"}
    styles = [e.text for e in page.root.iter("style")]
    for directive, texts in (("script-src", page.programs()), ("style-src", styles)):
        digests = (hashlib.sha256(text.encode()).digest() for text in texts)
        assert policy[directive] == {f"'sha256-{b64encode(d).decode()}'" for d in digests}


@KINDS
def test_a_page_can_be_read_by_all(pages: dict[str, Any], kind: str) -> None:
    root = pages[kind].root
    assert root.get("lang") == "en"
    assert len(list(root.iter("h1"))) == 1
    assert all(e.get("alt") for e in root.iter("img"))
    for svg in root.iter("{http://www.w3.org/2000/svg}svg"):
        assert svg.get("aria-hidden") == "true" or svg.get("aria-label")
    for table in root.iter("table"):
        assert table.find("caption") is not None or table.get("aria-labelledby")
        assert all(e.get("scope") in {"row", "col"} for e in table.iter("th"))


@KINDS
def test_a_page_says_how_it_was_made(pages: dict[str, Any], kind: str) -> None:
    text = pages[kind].text
    for words in ("Caution: simulated", "research only", "torch", "nibabel", "Python"):
        assert words in text


def test_without_a_caution_there_is_none(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    write_group_report(tmp_path / "page.html", [], {"Caution": "", "network": "x"})
    assert "Caution" not in read(tmp_path / "page.html").text


@pytest.mark.parametrize("name", ["page.nii.gz", "page", "page.txt"])
def test_other_files_are_not_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a scan")
    with pytest.raises(ReportError, match=rf"{name}: not the name of a page \(\.html or \.htm\)"):
        write_group_report(tmp_path / name, [], {})
    assert (tmp_path / name).read_text() == "a scan"


def test_where_nothing_can_be_written_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"missing/page\.html: cannot be written: No such file"):
        write_group_report(tmp_path / "missing" / "page.html", [], {})
    (tmp_path / "page.html").mkdir()
    with pytest.raises(ReportError, match=r"page\.html: cannot be written: Is a directory"):
        write_group_report(tmp_path / "page.html", [], {})
    assert list(tmp_path.iterdir()) == [tmp_path / "page.html"]


@pytest.mark.usefixtures("undrawn")
def test_a_name_that_is_no_text_is_shown(
    tmp_path: Path, case: Any, read: Callable[[Path], Any]
) -> None:
    """Names of files are bytes; Python holds those that are no UTF-8 as lone surrogates."""
    dwi = replace(case.dwi, path=Path("sub-\udcff.nii.gz"))
    write_subject_report(
        tmp_path / "page.html", dwi, np.zeros(len(dwi.b0)), threshold=0.5, settings={}
    )
    assert "sub-?" in read(tmp_path / "page.html").text


def test_no_program_ends_its_element_early() -> None:
    ends = {".js": ("</script", "<!--"), ".css": ("</style",)}
    package = files("tripq.report")
    read = [f for folder in ("assets", "niivue") for f in (package / folder).iterdir()]
    programs = [f for f in read if Path(f.name).suffix in ends]
    assert len(programs) == 5
    for file in programs:
        text = file.read_text(encoding="utf-8").lower()
        assert not any(end in text for end in ends[Path(file.name).suffix])


def test_the_viewer_is_the_one_on_record() -> None:
    folder = files("tripq.report") / "niivue"
    record = (folder / "README.md").read_text(encoding="utf-8")
    viewer = (folder / "niivue.umd.js").read_bytes()
    (version,) = re.findall(r"\| version \| (\S+) \|", record)
    (digest,) = re.findall(r"`([0-9a-f]{64})`", record)
    assert hashlib.sha256(viewer).hexdigest() == digest
    assert f'"{version}"'.encode() in viewer
    licences = (folder / "LICENSES.txt").read_text(encoding="utf-8")
    assert f"@niivue/niivue {version}" in licences
    assert "BSD 2-Clause License" in licences
