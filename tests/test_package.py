"""The installed package: a wheel and an editable install give the same modules."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from contextlib import suppress
from functools import cache
from importlib.metadata import (
    Distribution,
    PackageNotFoundError,
    distributions,
    requires,
    version,
)
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import tripq

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]

#: The newest version of the changelog, released or in preparation.
LATEST = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)[0]

PYTHONS = re.findall(
    r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text("utf-8")
)

# Started without site-packages, so that neither the package under test nor anything else is
# found before its turn: first the new install, then the dependencies.
PROBE = """
import json, site, sys
from importlib.util import find_spec
site.addsitedir(sys.argv[1])
kernels = find_spec("kernels")
sys.path.append(sys.argv[2])
import tripq.kernels
print(json.dumps([tripq.__file__, tripq.kernels.__file__, kernels and kernels.origin]))
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what a build reads: building in place would leave files behind."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "mkdocs.yml"):
        shutil.copy(ROOT / name, copy)
    for name in ("tripq", "kernels", "docs", "perf", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def build(kind: str, sources: Path, folder: Path) -> Path:
    """Build a ``wheel``, ``editable`` wheel or ``sdist`` in ``folder``, with setuptools at hand."""
    command = f"import sys, setuptools.build_meta as b; b.build_{kind}(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", command, folder], cwd=sources, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (path for path in folder.iterdir() if path.is_file())
    return built


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", sources, tmp_path_factory.mktemp("wheel"))


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_kernels_is_found_inside_tripq_and_nowhere_else(
    kind: str, wheel: Path, sources: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    ZipFile(wheel if kind == "wheel" else build(kind, sources, tmp_path)).extractall(site)

    dependencies = sysconfig.get_path("purelib")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROBE, site, dependencies],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    tripq, tripq_kernels, kernels = json.loads(done.stdout)

    tree = {"wheel": site / "tripq" / "kernels", "editable": sources / "kernels"}[kind]
    assert Path(tripq_kernels) == tree / "__init__.py"
    assert Path(tripq).is_relative_to(site if kind == "wheel" else sources)
    assert kernels is None


def test_wheel_holds_every_module_of_the_tree(wheel: Path, sources: Path) -> None:
    modules = {path.relative_to(sources).as_posix() for path in sources.glob("tripq/**/*.py")}
    kernels = {f"tripq/{path.relative_to(sources)}" for path in sources.glob("kernels/**/*.py")}
    weights = {p.relative_to(sources).as_posix() for p in sources.glob("tripq/**/*.safetensors")}

    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}

    data = {
        path.relative_to(sources).as_posix()
        for folder in ("assets", "niivue", "templates")
        for path in sources.glob(f"tripq/**/{folder}/*")
    }
    assert names == modules | kernels | data | weights | {"tripq/py.typed"}, (
        "see `packages` and `package-data` in pyproject.toml"
    )


def test_a_copy_without_git_has_the_version_of_the_next_release(wheel: Path) -> None:
    assert wheel.name.split("-")[1] == f"{LATEST}.dev0"


def test_citation_and_changelog_give_one_version() -> None:
    assert f"\nversion: {LATEST}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_command_shows_the_installed_version() -> None:
    assert tripq.__version__ == version("tripq")


def test_wheel_and_source_distribution_leave_raw_runs_out(sources: Path, tmp_path: Path) -> None:
    """The sdist has the documentation and the tests, and no measurements of this repository."""
    with tarfile.open(build("sdist", sources, tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"docs/index.md", "docs/images/rotation.png", "tests/conftest.py", "mkdocs.yml"} <= names
    assert not {name for name in names if name.startswith("perf/results")}
    assert "docs/experiment.jsonl" not in names
    assert {name for name in names if name.endswith(".safetensors")} == {
        path.relative_to(sources).as_posix() for path in sources.glob("tripq/**/*.safetensors")
    }


def test_core_works_without_triton(tmp_path: Path) -> None:
    program = ROOT / "tests/programs/core.py"
    done = subprocess.run(
        [sys.executable, program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *(f"layer {backend}" for backend in ("auto", "edges", "triton")),
        "network LesionSegmenter",
        f"version {version('tripq')}",
    ]


def test_packages_that_only_some_need_are_extras() -> None:
    """Core has neither Triton nor an upper bound; extras name everything of the project."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = about["dependencies"]
    extras = [one for some in about["optional-dependencies"].values() for one in some]
    named = {re.match(r"[\w.-]+", one)[0] for one in core + extras}
    assert not [one for one in core if one.startswith("triton") or "<" in one.partition(";")[0]]
    assert {
        "torch",
        "triton",
        "e3nn",
        "torch-cluster",
        "numpy",
        "nibabel",
        "pytest",
        "hypothesis",
    } <= named


@cache
def installed() -> dict[str, Distribution]:
    """The packages of this environment by their canonical names."""
    return {canonicalize_name(one.metadata["Name"]): one for one in distributions()}


@pytest.mark.parametrize("python", PYTHONS)
def test_every_python_can_install_the_versions_of_its_constraints(python: str) -> None:
    """A version that is not for a Python is not asked of it: pip would find no solution."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    checked = 0
    for pin in pins:
        one = installed().get(canonicalize_name(pin.name))
        asked = not pin.marker or pin.marker.evaluate({"python_version": python})
        if asked and one and one.version in pin.specifier:
            checked += 1
            assert f"{python}.20" in SpecifierSet(one.metadata["Requires-Python"] or ""), pin
    assert checked


def closure(requirement: str) -> set[Requirement]:
    """Requirements of a requirement, those of others included, as far as they are installed."""
    found: set[Requirement] = set()
    todo = [Requirement(requirement)]
    while todo:
        one = todo.pop()
        if one in found:
            continue
        found.add(one)
        with suppress(PackageNotFoundError):
            todo += [
                need
                for need in map(Requirement, requires(one.name) or ())
                if not need.marker
                or any(need.marker.evaluate({"extra": e}) for e in one.extras | {""})
            ]
    return found


def test_what_trains_and_scores_leaves_numpy_as_it_is() -> None:
    """The extra ``ms`` adds no upper bound of NumPy; `scores` does, and is therefore not in it."""

    def bounds(extra: str) -> set[str]:
        added = closure(f"tripq[{extra}]") - closure("tripq")
        assert len(added) > 1, "the extra is not installed"
        numpy = [one for one in added if one.name == "numpy"]
        return {str(each) for one in numpy for each in one.specifier if each.operator[0] in "<=~"}

    assert not bounds("ms")
    assert bounds("scores")
