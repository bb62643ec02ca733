"""The dataset of results: valid, and traceable to the files that it was made from."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sysconfig
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.commands.conftest import Call, write_mask, write_scan
from tests.tasks.fibres.conftest import fibre_head
from tripq.commands.derivatives import describe
from tripq.scans.bids import BIDSError
from tripq.tasks.fibres.names import FODF, PEAKS
from tripq.tasks.fibres.simulate import write_cohort
from tripq.tasks.layout import TRUTH

VALIDATOR = Path(sysconfig.get_path("scripts")) / "bids-validator-deno"
HINTS = {"README_FILE_MISSING", "TOO_FEW_AUTHORS"}  # what only its authors can say
NAMES = (
    "sub-01/dwi/sub-01_dwi.nii.gz",
    "sub-02/ses-a/dwi/sub-02_ses-a_acq-x_dir-AP_run-1_dwi.nii",
    "sub-02/ses-b/dwi/sub-02_ses-b_space-ACPC_desc-preproc_dwi.nii.gz",
    "sub-03/dwi/sub-03_acq-x_rec-y_chunk-1_dwi.nii.gz",
)


def write_description(root: Path, program: str = "") -> None:
    about: dict[str, Any] = {"Name": "made up", "BIDSVersion": "1.10.0"}
    if program:
        about |= {"DatasetType": "derivative", "GeneratedBy": [{"Name": program}]}
    (root / "dataset_description.json").write_text(json.dumps(about))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for name in NAMES:
        write_scan(tmp_path / "raw" / name)
    write_description(tmp_path / "raw")
    return tmp_path / "raw"


@pytest.fixture
def masks(tmp_path: Path, raw: Path) -> Path:
    for name in NAMES:
        mask = f"{name.partition('_dwi')[0].removesuffix('_desc-preproc')}_desc-brain_mask.nii.gz"
        write_mask(tmp_path / "masks" / mask, raw / name)
    write_description(tmp_path / "masks", "QSIPrep 2.0")
    return tmp_path / "masks"


def issues(dataset: Path) -> list[tuple[str, str, str]]:
    """Severity, code and place of all that the validator finds."""
    done = subprocess.run(
        [VALIDATOR, dataset, "--format", "json"], capture_output=True, text=True, check=False
    )
    found = json.loads(done.stdout)["issues"]["issues"]
    return [(each["severity"], each["code"], each["location"]) for each in found]


@pytest.mark.skipif(not VALIDATOR.exists(), reason="bids-validator-deno is not installed")
def test_the_validator_finds_nothing_wrong(
    quick: None, call: Call, raw: Path, masks: Path, weights: Path, tmp_path: Path
) -> None:
    write_scan(raw / "sub-04/dwi/sub-04_dwi.nii.gz").write_bytes(b"no image")
    out = tmp_path / "out"
    words = ("segment-bids", raw, out, "participant", "--weights", weights, "--masks", masks)
    assert call(*words).status == 1
    assert len(list(out.rglob("*_probseg.nii.gz"))) == len(NAMES)
    found = issues(out)
    assert not [issue for issue in found if issue[1] not in HINTS]
    assert {severity for severity, _, _ in found} <= {"warning"}
    next(out.rglob("*_mask.json")).unlink()
    assert "SIDECAR_KEY_REQUIRED" in {code for _, code, _ in issues(out)}  # it looks at the maps


@pytest.mark.skipif(not VALIDATOR.exists(), reason="bids-validator-deno is not installed")
def test_maps_of_models_are_ignored_as_long_as_the_standard_has_none(tmp_path: Path) -> None:
    write_cohort([fibre_head(1)], tmp_path)
    truth = tmp_path / TRUTH
    assert not [issue for issue in issues(truth) if issue[0] == "error"]
    (truth / ".bidsignore").unlink()
    errors = {Path(place).name for severity, _, place in issues(truth) if severity == "error"}
    assert {name.partition(".")[0] for name in errors} == {f"sub-01_{x}" for x in (FODF, PEAKS)}


def test_every_source_is_the_file_that_was_read(
    quick: None, call: Call, raw: Path, masks: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("segment-bids", raw, out, "participant", "--weights", weights, "--masks", masks)
    assert call(*words).status == 0
    about = json.loads((out / "dataset_description.json").read_text())
    assert about["DatasetLinks"].keys() == {"raw", "qsiprep20"}
    roots = {name: Path(unquote(urlsplit(u).path)) for name, u in about["DatasetLinks"].items()}

    def find(uri: str) -> Path:
        scheme, name, path = uri.split(":")
        assert scheme == "bids"
        return roots.get(name, out) / unquote(path)

    sidecars = sorted(out.rglob("*_probseg.json"))
    assert len(sidecars) == len(NAMES)
    for sidecar in sidecars:
        said = json.loads(sidecar.read_text())
        digests = [hashlib.sha256(find(uri).read_bytes()).hexdigest() for uri in said["Sources"]]
        assert digests == [each["SHA256"] for each in said["Inputs"].values()]
        assert len(digests) == 4
        assert said["SpatialReference"] == said["Sources"][0]
        of_mask = json.loads(Path(str(sidecar).replace("_probseg", "_mask")).read_text())
        (source,) = of_mask["Sources"]
        assert find(source) == sidecar.with_suffix(".nii.gz")
        assert of_mask["SpatialReference"] == said["SpatialReference"]
        assert (of_mask["Type"], of_mask["Threshold"]) == ("Lesion", said["Threshold"])


def test_a_dataset_is_called_after_the_program_that_made_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    places = [tmp_path / name for name in ("data", "qsiprep", "again", "elsewhere", "masks")]
    data, qsiprep, again, elsewhere, masks = places
    for place in places:
        place.mkdir()
    for place in (qsiprep, again):
        write_description(place, "QSIPrep")
    (elsewhere / "dataset_description.json").write_text("[")
    assert describe(out, data) == {data: "raw"}
    assert describe(out, qsiprep, qsiprep) == {qsiprep: "qsiprep"}
    assert describe(out, data, again) == {data: "raw", again: "qsiprep2"}
    assert describe(out, elsewhere, masks) == {elsewhere: "raw2", masks: "derivatives"}
    assert describe(out, qsiprep, data) == {qsiprep: "qsiprep", data: "raw"}
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    assert len(links) == len(places)


def test_what_its_owner_has_written_stays(tmp_path: Path) -> None:
    describe(tmp_path, tmp_path / "a")
    path = tmp_path / "dataset_description.json"
    about = {**json.loads(path.read_text()), "Authors": ["somebody"]}
    path.write_text(json.dumps(about))
    (tmp_path / ".bidsignore").write_text("mine\n")
    describe(tmp_path, tmp_path / "a", tmp_path / "b")
    assert json.loads(path.read_text())["Authors"] == ["somebody"]
    assert (tmp_path / ".bidsignore").read_text() == "mine\n"
    path.write_text(json.dumps({**about, "DatasetLinks": "nonsense"}))
    assert describe(tmp_path, tmp_path / "a") == {tmp_path / "a": "raw"}
    path.write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    with pytest.raises(BIDSError, match="a dataset of fMRIPrep: choose another folder"):
        describe(tmp_path, tmp_path / "a")
