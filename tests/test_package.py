"""The installed package: a wheel and an editable install give the same modules."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]

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
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("tripq", "kernels"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def build(kind: str, sources: Path, folder: Path) -> Path:
    """Build a ``wheel`` or an ``editable`` wheel into ``folder``, with the setuptools at hand."""
    command = f"import sys, setuptools.build_meta as b; b.build_{kind}(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", command, folder], cwd=sources, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_kernels_is_found_inside_tripq_and_nowhere_else(
    kind: str, sources: Path, tmp_path: Path
) -> None:
    wheel = build(kind, sources, tmp_path)
    site = tmp_path / "site"
    ZipFile(wheel).extractall(site)

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


def test_wheel_holds_every_module_of_the_tree(sources: Path, tmp_path: Path) -> None:
    modules = {path.relative_to(sources).as_posix() for path in sources.glob("tripq/**/*.py")}
    kernels = {f"tripq/{path.relative_to(sources)}" for path in sources.glob("kernels/**/*.py")}
    weights = {p.relative_to(sources).as_posix() for p in sources.glob("tripq/**/*.safetensors")}

    names = {
        name
        for name in ZipFile(build("wheel", sources, tmp_path)).namelist()
        if ".dist-info/" not in name
    }

    data = {
        path.relative_to(sources).as_posix()
        for folder in ("assets", "niivue", "templates")
        for path in sources.glob(f"tripq/**/{folder}/*")
    }
    assert names == modules | kernels | data | weights | {"tripq/py.typed"}, (
        "see `packages` and `package-data` in pyproject.toml"
    )


def test_citation_gives_the_installed_version() -> None:
    assert f"version: {version('tripq')}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
