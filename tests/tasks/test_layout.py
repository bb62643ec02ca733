"""Cohorts as BIDS datasets: one description, and whole subjects."""

from __future__ import annotations

from pathlib import Path

import pytest

from tripq.infra.files import read_json
from tripq.tasks.layout import ICBM, TRUTH, DatasetError, Layout, finished

LAYOUT = Layout(
    title="Heads",
    truth_title="Truth of the heads",
    notice="Simulated.",
    kind="a simulated",
    section="Simulation",
    licences=(ICBM,),
    columns={"snr": "Signal-to-noise ratio"},
    ignored="*_dwimap.*",
)


def write(folder: Path, name: str, text: str = "scan") -> None:
    """A subject whose scan is a text."""

    def files(scan: Path, truth: Path) -> None:
        (scan / f"{name}_dwi.nii.gz").write_text(text)
        (truth / f"{name}_desc-brain_mask.nii.gz").write_text("mask")

    LAYOUT.write_subject(folder, name, files, {"Seed": 1}, {"snr": "20"})


def test_a_subject_is_whole_or_absent(tmp_path: Path) -> None:
    def interrupted(scan: Path, truth: Path) -> None:
        (truth / "sub-01_desc-brain_mask.nii.gz").write_text("mask")
        raise KeyboardInterrupt

    LAYOUT.describe(tmp_path, {"Seed": 1})
    with pytest.raises(KeyboardInterrupt):
        LAYOUT.write_subject(tmp_path, "sub-01", interrupted, {}, {})
    assert finished(tmp_path) == []
    assert not (tmp_path / TRUTH / "sub-01").exists()
    write(tmp_path, "sub-01")
    write(tmp_path, "sub-01", "another scan")
    assert finished(tmp_path) == ["sub-01"]
    assert (tmp_path / "sub-01/dwi/sub-01_dwi.nii.gz").read_text() == "another scan"
    assert (tmp_path / TRUTH / "sub-01/dwi/sub-01_desc-brain_mask.nii.gz").is_file()
    assert read_json(tmp_path / "sub-01/dwi/sub-01_dwi.json") == {
        "Description": "Simulated.",
        "Simulation": {"Seed": 1},
        "snr": "20",
    }
    assert not list(tmp_path.glob(".*"))


def test_the_table_lists_the_finished_subjects(tmp_path: Path) -> None:
    LAYOUT.describe(tmp_path, {})
    write(tmp_path, "sub-02")
    write(tmp_path, "sub-01")
    LAYOUT.write_participants(tmp_path)
    table = (tmp_path / "participants.tsv").read_text()
    assert table == "participant_id\tsnr\nsub-01\t20\nsub-02\t20\n"


def test_a_folder_has_one_cohort_with_one_description(tmp_path: Path) -> None:
    LAYOUT.describe(tmp_path / "heads", {"Seed": 1})
    LAYOUT.describe(tmp_path / "heads", {"Seed": 1})
    assert (tmp_path / "heads" / TRUTH / ".bidsignore").read_text() == "*_dwimap.*\n"
    assert "cite Fonov" in (tmp_path / "heads/README").read_text()
    with pytest.raises(DatasetError, match="other settings: Seed is 1, not 2"):
        LAYOUT.describe(tmp_path / "heads", {"Seed": 2})
    (tmp_path / "heads/dataset_description.json").write_text('{"Simulation": "fibres"}')
    with pytest.raises(DatasetError, match="not the description of a simulated cohort"):
        LAYOUT.describe(tmp_path / "heads", {"Seed": 1})
    with pytest.raises(DatasetError, match="contains other files"):
        LAYOUT.describe(tmp_path, {})
