"""The recipes of containers: checks without building, and a build where there is a builder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.commands.conftest import start, write_scan

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


def engine() -> str | None:
    """Find a program that builds and runs images here: a client without its server cannot."""
    for name in ("podman", "docker"):
        if shutil.which(name):
            done = subprocess.run([name, "info"], capture_output=True, check=False)
            if done.returncode == 0:
                return name
    return None


@pytest.fixture(scope="module")
def image() -> Callable[..., str]:
    """Build the image for the CPU; what it prints, without a network and as its own user."""
    program = engine()
    if program is None:
        pytest.skip("no podman or docker that can build images")
    recipe = ROOT / "containers/Dockerfile"
    subprocess.run([program, "build", "-f", recipe, "-t", "tripq-test:cpu", ROOT], check=True)

    def run(*arguments: object, options: tuple[str, ...] = ()) -> str:
        words = [program, "run", "--rm", "--network", "none", *options, "tripq-test:cpu"]
        done = subprocess.run(
            [*words, *map(str, arguments)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


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
def test_the_image_runs_as_a_user_and_without_a_network(image: Callable[..., str]) -> None:
    assert image("--version").startswith("tripq ")
    assert image("-u", options=("--entrypoint", "id")).strip() != "0"


@pytest.mark.exhaustive
def test_the_image_gives_the_map_of_this_environment(
    image: Callable[..., str], tmp_path: Path
) -> None:
    """As a BIDS App: the dataset is read-only, and the user owns nothing but the results."""
    data, here, there = tmp_path / "data", tmp_path / "here", tmp_path / "there"
    write_scan(data / "sub-01/dwi/sub-01_dwi.nii.gz")
    about = {"Name": "made up", "BIDSVersion": "1.10.0"}
    (data / "dataset_description.json").write_text(json.dumps(about), encoding="utf-8")
    there.mkdir()
    there.chmod(0o777)
    mounts = ("--volume", f"{data}:/data:ro", "--volume", f"{there}:/out")
    image("/data", "/out", "participant", options=(*mounts, "--user", "4321:4321"))
    process = start("segment-bids", data, here, "participant", cwd=tmp_path)
    process.communicate()
    assert process.returncode == 0
    (name,) = (path.relative_to(here) for path in here.rglob("*_probseg.nii.gz"))
    found, known = (nib.load(folder / name).get_fdata() for folder in (there, here))
    assert known.any()
    np.testing.assert_allclose(found, known, atol=1e-5)
    assert (there / name).stat().st_uid == 4321
