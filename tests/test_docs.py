"""The site builds without a warning, has a place for every public name, and its code runs."""

from __future__ import annotations

import ast
import doctest
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from markdown_it import MarkdownIt

from tripq.simulate import GradientTable, default_anatomy, simulate_subject, write_subject

ROOT = Path(__file__).parents[1]
DOCTEST_OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


# -- code on the pages ---------------------------------------------------------------------------


def code_blocks(page):
    """Language, first line and code of the fenced Python of a page."""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "fence" and token.info in ("python", "pycon"):
            yield token.info, token.map[0] + 1, token.content


PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if any(code_blocks(page))]


@pytest.fixture(scope="module")
def scan_folder(tmp_path_factory):
    """Write the scan that the pages read: dwi.nii.gz, its table and its mask."""
    anatomy = default_anatomy(4.0).within((-40, -60, 0), (40, 40, 30))
    subject = simulate_subject(anatomy, GradientTable.from_shells([1000.0], [12]), seed=0)
    folder = tmp_path_factory.mktemp("scan")
    write_subject(subject, folder)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_on_a_page_runs_and_gives_what_is_shown(page, scan_folder, monkeypatch):
    monkeypatch.chdir(scan_folder)
    names, dtype = {}, torch.get_default_dtype()
    runner = doctest.DocTestRunner(optionflags=DOCTEST_OPTIONS)
    report = []
    try:
        for language, line, code in code_blocks(page):
            if language == "python":
                exec(compile("\n" * line + code, page, "exec"), names)
                continue
            test = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line)
            runner.run(test, out=report.append, clear_globs=False)
            names.update(test.globs)
    finally:
        torch.set_default_dtype(dtype)
    assert runner.failures == 0, "".join(report)
