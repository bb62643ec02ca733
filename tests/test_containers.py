"""The recipes of containers: checks without building, and a build where there is a builder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "containers/Dockerfile").read_text(encoding="utf-8")
APPTAINER = (ROOT / "containers/tripq.def").read_text(encoding="utf-8")
HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"
RECIPES = {"docker": DOCKERFILE, "apptainer": APPTAINER}


def section(name: str) -> str:
    """Return a section of the recipe of Apptainer."""
    return APPTAINER.split(f"\n%{name}\n")[1].split("\n%")[0]


def copied() -> set[str]:
    """Sources that the Dockerfile copies from the repository."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M)
    return {source for line in lines for source in line.split()[:-1]}


def builder() -> str | None:
    """Find a program that can build an image here: a client without its server cannot."""
    for name in ("podman", "buildah", "docker"):
        if shutil.which(name):
            done = subprocess.run([name, "info"], capture_output=True, check=False)
            if done.returncode == 0:
                return name
    return None


def test_both_recipes_copy_the_same_files_which_exist() -> None:
    in_apptainer = {line.split()[0] for line in section("files").splitlines() if line.strip()}
    assert copied() == in_apptainer
    assert all((ROOT / name).exists() for name in copied())


def test_the_context_of_a_build_has_what_is_copied_and_no_more() -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignore[1] == "*"
    assert {line[1:] for line in ignore if line.startswith("!")} == copied()


@pytest.mark.parametrize("recipe", RECIPES)
def test_python_and_all_packages_are_pinned(recipe: str) -> None:
    """Python is that of constraints.txt, with a full version, and pip takes no other packages."""
    text = RECIPES[recipe]
    (version,) = set(
        re.findall(r"^F(?:ROM|rom:?) ?python:(\d+\.\d+\.\d+)-slim-bookworm", text, re.M)
    )
    header = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[0]
    assert f"(Python {version.rpartition('.')[0]}, Linux)" in header
    assert text.count("pip install") == text.count("--constraint constraints.txt") == 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_both_variants_are_known_and_others_are_refused(recipe: str) -> None:
    assert {"cpu)", "cuda)", "*)"} <= set(RECIPES[recipe].split())
    assert 'cuda) index=https://pypi.org/simple extras="[cuda]"' in RECIPES[recipe]


def test_the_test_of_the_image_reads_the_included_network() -> None:
    (program,) = re.findall(r"python -c '([^']+)'", section("test"))
    with redirect_stdout(StringIO()) as shown:
        exec(program, {})
    assert Path(shown.getvalue().strip()).is_file()


def test_nobody_is_root() -> None:
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.M)
    assert users
    assert users[-1] not in ("0", "root")
    last_run = DOCKERFILE.rindex("\nRUN ")
    assert DOCKERFILE.index(f"\nUSER {users[-1]}") > last_run


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        (["/data", "/out", "participant"], "segment-bids /data /out participant"),
        (["check", "/data/dwi.nii.gz"], "check /data/dwi.nii.gz"),
        (["--version"], "--version"),
        ([], ""),
    ],
)
def test_a_path_calls_the_bids_app(arguments: list[str], called: str, tmp_path: Path) -> None:
    fake = tmp_path / "tripq"
    fake.write_text('#!/bin/sh\necho "$@"\n', encoding="utf-8")
    fake.chmod(0o755)
    script = ROOT / "containers/entrypoint.sh"
    assert script.stat().st_mode & 0o111
    done = subprocess.run(
        [script, *arguments],
        env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == called


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint is not installed")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [HADOLINT, ROOT / "containers/Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.exhaustive
def test_the_image_runs_as_a_user_and_without_a_network() -> None:
    program = builder()
    if program is None:
        pytest.skip("no docker, podman or buildah that can build images")
    image = "tripq-test:cpu"
    recipe = ROOT / "containers/Dockerfile"
    subprocess.run([program, "build", "-f", recipe, "-t", image, ROOT], check=True)
    if program == "buildah":
        return
    run = [program, "run", "--rm", "--network", "none"]
    shown = subprocess.run([*run, image, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("tripq ")
    who = subprocess.run(
        [*run, "--entrypoint", "id", image, "-u"], capture_output=True, text=True, check=True
    )
    assert who.stdout.strip() != "0"
