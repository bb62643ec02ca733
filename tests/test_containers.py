"""The recipes of containers: checks without building, and a build where there is a builder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess

import nibabel as nib
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


@dataclass(frozen=True)
class Image:
    """An image and the words that call it, without a network.

    `run` calls the program of the image, `inside` any other; options follow, such as `mount` and a
    folder, and then the `name`.  What it writes belongs to the user `owner`.
    """

    run: tuple[str, ...]
    inside: tuple[str, ...]
    mount: str
    name: str
    owner: int

    def tripq(self, *arguments: object, mounts: Sequence[str] = ()) -> CompletedProcess[str]:
        options = [word for mounted in mounts for word in (self.mount, mounted)]
        return finished([*self.run, *options, self.name, *arguments])

    def python(self, program: str) -> str:
        done = finished([*self.inside, self.name, "python", "-c", program])
        assert done.returncode == 0, done.stderr
        return done.stdout


def finished(words: Sequence[object]) -> CompletedProcess[str]:
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)


def engine() -> str | None:
    """Find a program that builds and runs images here: a client without its server cannot."""
    for name in ("podman", "docker"):
        if shutil.which(name) and finished([name, "info"]).returncode == 0:
            return name
    return None


def docker_image(variant: str) -> Image:
    program = engine()
    if program is None:
        pytest.skip("no podman or docker that can build images")
    name = f"tripq-test:{variant}"
    build = [program, "build", "-f", "containers/Dockerfile", "-t", name]
    subprocess.run([*build, "--build-arg", f"VARIANT={variant}", "."], cwd=ROOT, check=True)
    by_default = finished([program, "run", "--rm", "--entrypoint", "id", name, "-u"]).stdout
    assert by_default.strip() == "1000"
    user = 4321
    run = (program, "run", "--rm", "--network", "none", "--user", f"{user}:{user}")
    return Image(run, (*run, "--entrypoint", "env"), "--volume", name, user)


def apptainer_image(variant: str, folder: Path) -> Image:
    program = shutil.which("apptainer")
    if program is None:
        pytest.skip("no apptainer that can build images")
    name = str(folder / f"{variant}.sif")
    build = [program, "build", "--build-arg", f"VARIANT={variant}", name, "containers/tripq.def"]
    subprocess.run(build, cwd=ROOT, check=True)
    apart = ("--containall", "--net", "--network", "none")
    inside = (program, "exec", *apart)
    return Image((program, "run", *apart), inside, "--bind", name, os.getuid())


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


def test_both_images_for_cuda_have_the_same_compiler_for_triton() -> None:
    last_stage = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    (in_docker,) = re.findall(r"= cuda \];.+?apt-get install (.+?) \\\n", last_stage, re.S)
    (in_apptainer,) = re.findall(r"= cuda \];.+?apt-get install (.+?)\n", APPTAINER, re.S)
    assert in_docker == in_apptainer
    assert re.search(r" gcc=\S+ libc6-dev=\S+$", in_docker)


def test_the_test_of_the_image_reads_the_included_network() -> None:
    (program,) = re.findall(r"python -c '([^']+)'", section("test"))
    with redirect_stdout(StringIO()) as shown:
        exec(program, {})
    assert Path(shown.getvalue().strip()).is_file()


def test_apptainer_takes_no_python_packages_of_the_caller() -> None:
    """Apptainer hands over the caller's environment; it ignores `unset`, but not empty values."""
    done = subprocess.run(
        ["sh", "-c", f"{section('environment')}\nenv"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": "/elsewhere", "PYTHONHOME": "/elsewhere"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"PYTHONPATH=", "PYTHONHOME=", "PYTHONNOUSERSITE=1"} <= set(done.stdout.splitlines())


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


INSTALLED = """
from importlib.metadata import distributions
print(*(f"{one.name}=={one.version.partition('+')[0]}" for one in distributions()))
"""

# What Triton compiles on a device before its first kernel; without one, it cannot be loaded.
LAUNCHER = """
from pathlib import Path
from tempfile import mkdtemp
from triton.backends.nvidia import driver
from triton.runtime.build import _build
source = Path(driver.__file__).with_name("driver.c")
print(_build("launcher", str(source), mkdtemp(), [], driver.include_dirs, [], []))
"""


def not_pinned(packages: Iterable[str]) -> set[str]:
    """Packages, ``name==version``, that constraints.txt does not name with this version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(pin.name): pin.specifier for pin in pins}
    found = [Requirement(one) for one in packages]
    return {one.name for one in found if one.specifier != versions.get(canonicalize_name(one.name))}


@pytest.mark.exhaustive
@pytest.mark.parametrize("variant", ["cpu", "cuda"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_an_image_is_pinned_and_gives_the_map_of_this_environment(
    recipe: str, variant: str, tmp_path: Path
) -> None:
    """As a BIDS App: the dataset is read-only, and the user owns nothing but the results.

    One test for each image, so that no two processes build the same.
    """
    built = docker_image(variant) if recipe == "docker" else apptainer_image(variant, tmp_path)
    assert built.tripq("--version").stdout.startswith("tripq ")
    assert not_pinned(built.python(INSTALLED).split()) == {"pip", "tripq"}
    if variant == "cuda":
        assert built.python(LAUNCHER).strip().endswith(".so")

    data, here, there = tmp_path / "data", tmp_path / "here", tmp_path / "there"
    write_scan(data / "sub-01/dwi/sub-01_dwi.nii.gz")
    about = {"Name": "made up", "BIDSVersion": "1.10.0"}
    (data / "dataset_description.json").write_text(json.dumps(about), encoding="utf-8")
    there.mkdir()
    there.chmod(0o777)
    mounts = (f"{data}:/data:ro", f"{there}:/out")
    refused = built.tripq("/data", "/out", "participant", "--device", "cuda", mounts=mounts)
    assert refused.returncode == 1
    assert "torch finds no CUDA device here" in refused.stderr
    done = built.tripq("/data", "/out", "participant", mounts=mounts)
    assert done.returncode == 0, done.stderr
    process = start("segment-bids", data, here, "participant", cwd=tmp_path)
    process.communicate()
    assert process.returncode == 0
    (name,) = (path.relative_to(here) for path in here.rglob("*_probseg.nii.gz"))
    found, known = (nib.load(folder / name).get_fdata() for folder in (there, here))
    assert known.any()
    np.testing.assert_allclose(found, known, atol=1e-5)
    assert (there / name).stat().st_uid == built.owner
