"""The site builds without a warning, has a place for every public name, and its code runs."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import json
import os
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from markdown_it import MarkdownIt

from tripq.simulate import GradientTable, default_anatomy
from tripq.tasks.lesions.simulate import simulate_subject, write_subject

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


@pytest.mark.usefixtures("few_settling", "undrawn")
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


def test_pictures_of_frames_show_what_the_text_says():
    """Only the right frame lets fibres continue; the numbers of FSL are those of both storages."""
    spec = importlib.util.spec_from_file_location("frames", ROOT / "docs/figures/frames.py")
    frames = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(frames)
    anatomy = default_anatomy(4.0)

    left, right = (axes.get_xlabel().split("\n") for axes in frames.storage_figure(anatomy).axes)
    assert left[0] == right[0] == "   fsl:  -0.80   0.60   0.00"
    assert left[1] != right[1]
    assert left[2] == right[2] == " world:   0.80   0.60   0.00"
    assert len(frames.oblique_figure(anatomy).axes) == 2
    titles = [axes.get_title() for axes in frames.wrong_figure(anatomy).axes]
    assert [title.split(":")[0] for title in titles] == [
        'frame="fsl", right',
        'frame="voxel", wrong',
    ]
    good, bad = (float(title.split()[-1]) for title in titles)
    assert good > bad + 0.05


# -- the site ------------------------------------------------------------------------------------


def modules():
    """Source files of the package by module, public ones only."""
    files = {path: path.relative_to(ROOT) for path in (ROOT / "tripq").rglob("*.py")}
    files |= {
        path: Path("tripq", path.relative_to(ROOT)) for path in (ROOT / "kernels").rglob("*.py")
    }
    for path, place in files.items():
        parts = [part for part in place.with_suffix("").parts if part != "__init__"]
        if not any(part.startswith("_") for part in parts):
            yield ".".join(parts), path


def public_names():
    """Functions and classes that a module defines, with their methods, and what is in __all__."""
    for module, path in modules():
        yield module
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                yield f"{module}.{node.name}"
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from (
                    f"{module}.{node.name}.{method.name}"
                    for method in node.body
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
                )
        if path.name == "__init__.py":
            yield from (
                f"{module}.{name}"
                for name in getattr(importlib.import_module(module), "__all__", ())
                if name != "__version__"
            )


def inventory(site):
    """Names that have a place on the site: objects.inv in the format of Sphinx, version 2."""
    data = (site / "objects.inv").read_bytes()
    lines = zlib.decompress(data.split(b"zlib.\n", 1)[1]).decode().splitlines()
    return {line.split(" ", 1)[0] for line in lines}


class Links(HTMLParser):
    """Targets of the links and images of a page, the places that it offers, and what is fetched."""

    def __init__(self, page):
        super().__init__()
        self.targets, self.places, self.fetched = [], set(), []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.targets += [values[key] for key in ("href", "src") if values.get(key)]
        self.places |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag in ("img", "script", "iframe"):
            self.fetched.append(values.get("src") or "")
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.fetched.append(values.get("href") or "")


def dead_links(site, pages):
    """Links to files or places of the site that are not there."""
    for page, links in pages.items():
        if page.name == "404.html":
            continue
        for target in links.targets:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            file = (page.parent / unquote(url.path)).resolve() if url.path else page
            place = unquote(url.fragment)
            found = file in pages and (not place or place in pages[file].places)
            if not found and (not file.is_file() or file in pages):
                yield f"{page.relative_to(site)}: {target}"


@pytest.mark.parametrize("whole", ["false", pytest.param("true", marks=pytest.mark.exhaustive)])
def test_the_site_is_complete(whole, tmp_path):
    """One test, as it builds only once: every name and link leads somewhere.

    Only the whole site has outputs of the notebook, signatures, source code, colours and search.
    """
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", site],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "NO_MKDOCS_2_WARNING": "1",
            "TRIPQ_WHOLE_SITE": whole,
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr

    missing = sorted(set(public_names()) - inventory(site))
    assert not missing, "add `::: module` to a page in docs/api, or a docstring"
    pages = {page: Links(page) for page in site.rglob("*.html")}
    assert sorted(dead_links(site, pages)) == []
    fetched = {url for links in pages.values() for url in links.fetched}
    assert not {url for url in fetched if urlsplit(url).netloc}, "the site works without a network"


def notebook_cells():
    """The cells of code of the notebook."""
    notebook = json.loads((ROOT / "docs/notebooks/first-steps.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_stored_without_outputs():
    cells = notebook_cells()
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def test_the_notebook_runs(few_settling):
    """On a slab, with few steps of training; `make docs` and `make test-all` run it as it is."""
    code = "\n".join("".join(cell["source"]) for cell in notebook_cells())
    for whole, part in {
        "%matplotlib inline\n": "",
        "(-80, -110, -10), (80, 80, 50)": "(-44, -60, 0), (44, 40, 30)",
        "    8,\n    seed=3": "    3,\n    seed=3",
        "Budget(steps=120)": "Budget(steps=3)",
    }.items():
        assert code.count(whole) == 1
        code = code.replace(whole, part)
    exec(compile(code, "notebook", "exec"), {})
