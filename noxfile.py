"""The wheel in fresh environments, with every Python that it supports: ``nox -s core tests``.

``nox -s core-3.12`` installs the wheel alone, with nothing optional, and calls it;
``nox -s tests-3.12`` runs the tests on it.  With
``PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu`` torch is that for the CPU, which is
much smaller; with ``PIP_CONSTRAINT=$PWD/constraints.txt`` all versions are those of CI.
"""

from __future__ import annotations

from pathlib import Path

import nox

PYTHONS = ("3.10", "3.11", "3.12", "3.13")

nox.needs_version = ">=2025.2"
nox.options.sessions = ["core"]


def build(session: nox.Session) -> Path:
    """Build the wheel of this folder, outside of it."""
    folder = Path(session.create_tmp()).resolve()
    session.install("build")
    session.run("python", "-m", "build", "--wheel", "--outdir", str(folder))
    return max(folder.glob("*.whl"), key=lambda path: path.stat().st_mtime)


@nox.session(python=PYTHONS)
def core(session: nox.Session) -> None:
    """Install the wheel alone; the command, a layer and the checkpoint must work without extras."""
    session.install(str(build(session)))
    # the size that docs/install.md states
    session.run("du", "-s", "--block-size=MB", session.virtualenv.location, external=True)
    # in another folder, so that the tree of this repository is not imported
    session.cd(session.create_tmp())
    session.run("tripq", "--version")
    program = Path(__file__).with_name("tests") / "programs" / "core.py"
    session.run("python", str(program))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests on the wheel; arguments after ``--`` go to pytest."""
    session.install(f"{build(session)}[bench,cuda,docs,ms,test]")
    session.run("pytest", "tests", *session.posargs)
