"""Training from the command line: it can go on, and what it writes can be used."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.commands.conftest import Call, Outcome
from tests.processes import COMMAND, Forked
from tripq.commands.train import Watch
from tripq.networks.checkpoint import load_network, read_notes
from tripq.tasks.lesions.config import LesionConfig
from tripq.tasks.lesions.datasets import draw_validation, find_labelled, read_labelled
from tripq.tasks.lesions.listing import drop_small
from tripq.tasks.lesions.scores import best_min_volume, best_threshold, count_lesions, score
from tripq.tasks.lesions.segmentation import segment
from tripq.training.config import ConfigError, example_config, parse_config

pytestmark = pytest.mark.usefixtures("few_settling")

SHAPE = (9, 8, 7)
AFFINE = np.diag([-2.0, 2.0, 2.0, 1.0])
CONFIG = """
[network]
q_features = "3x0e + 1x2e"
p_features = "3x0e + 1x1o"
n_p_layers = 1

[training]
steps = 4
every = 2
box_size = 5

[split]
validation = ["03"]
"""


def write_labelled(root: Path, name: str, voxel_size: float = 2.0) -> None:
    """Write a scan whose lesion attenuates less, with its masks."""
    rng = np.random.default_rng(int(name[-2:]))
    affine = np.diag([-voxel_size, voxel_size, voxel_size, 1.0])
    lesion = np.zeros(SHAPE, bool)
    lesion[3:6, 2:5, 2:5] = True
    brain = np.ones(SHAPE, bool)
    brain[0] = False
    b_values = np.array([0, *6 * [1000]])
    directions = rng.normal(size=(7, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    data = rng.uniform(300, 500, size=(*SHAPE, 7))
    data[lesion] *= 1.5
    data[..., 0] = 1000
    scan = root / name / "dwi" / f"{name}_dwi.nii.gz"
    truth = root / "derivatives/truth" / name / "dwi"
    for path, values in (
        (scan, data),
        (truth / f"{name}_label-lesion_mask.nii.gz", lesion),
        (truth / f"{name}_desc-brain_mask.nii.gz", brain),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(values.astype(np.float32), affine)
        image.header.set_xyzt_units("mm")
        image.to_filename(path)
    np.savetxt(scan.with_name(f"{name}_dwi.bval"), [b_values], fmt="%g")
    np.savetxt(scan.with_name(f"{name}_dwi.bvec"), directions.T)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("sub-01", "sub-02", "sub-03"):
        write_labelled(tmp_path / "data", name)
    return tmp_path / "data"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "train.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def fit(call: Call, data: Path, config: Path, out: Path):
    def run(*more: object) -> Outcome:
        return call("train", data, "--config", config, "-o", out, "--device", "cpu", *more)

    return run


def weights(out: Path) -> Path:
    return out / "lesion-segmenter.safetensors"


def record(out: Path) -> dict:
    return json.loads((out / "training.json").read_text())


def test_what_is_trained_tells_what_it_is_and_segments_a_scan(
    fit, call: Call, data: Path, out: Path, tmp_path: Path
) -> None:
    done = fit()
    assert done.status == 0, done.stderr
    notes = read_notes(weights(out))
    assert notes["voxel_size_mm"] == "2"
    assert notes["b_values"] == "1000"
    assert notes["fewest_directions"] == "6"
    assert notes["task"] == "lesions"
    assert notes["caution"] == "for research only, not for diagnosis"
    assert notes["data"] == "data: 2 scans for training, 1 for validation"
    assert [step for step, _ in record(out)["record"]["scores"]] == [2, 4]
    assert "sub-03" in (out / "validation.html").read_text()
    assert "step 4: average precision" in (out / "training.log").read_text()

    held_out = read_labelled(find_labelled(data, data / "derivatives/truth").files[2])
    probability = segment(load_network(weights(out)), held_out.dwi)
    threshold = float(notes["threshold"])
    assert threshold == best_threshold(probability, held_out.lesion)
    found, truth = (
        held_out.dwi.volume(values) for values in (probability >= threshold, held_out.lesion)
    )
    min_volume = float(notes["min_volume_ml"])
    assert min_volume == best_min_volume([found], [truth], [0.008])
    marked = drop_small(found, 0.008, min_volume)
    scores = record(out)["validation_scores"]
    expected = score(probability, held_out.lesion, threshold, found=marked[held_out.dwi.mask])
    assert scores["dice"] == pytest.approx(expected.dice)
    assert scores["lesion_f1"] == pytest.approx(count_lesions(marked, truth).f1)

    scan = data / "sub-03/dwi/sub-03_dwi.nii.gz"
    mask = data / "derivatives/truth/sub-03/dwi/sub-03_desc-brain_mask.nii.gz"
    used = call("segment", scan, "--mask", mask, "--weights", weights(out), "-o", tmp_path / "map")
    assert used.status == 0, used.stderr
    written = nib.load(tmp_path / "map/sub-03_label-lesion_probseg.nii.gz")
    np.testing.assert_allclose(
        np.asarray(written.dataobj)[held_out.dwi.mask], probability, rtol=1e-5
    )


def test_an_interrupted_training_goes_on_and_ends_the_same(
    fit, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit()
    undisturbed = load_network(weights(out)).state_dict()
    fit_report = Watch.__call__

    def interrupted(self, progress):
        fit_report(self, progress)
        if progress.steps == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "__call__", interrupted)
    stopped = fit("--overwrite", "-o", tmp_path / "again")
    assert stopped.status == 130
    assert "run it again to resume" in stopped.stderr
    assert not weights(tmp_path / "again").exists()
    monkeypatch.setattr(Watch, "__call__", fit_report)
    done = fit("-o", tmp_path / "again")
    assert done.status == 0, done.stderr
    assert "training resumes" in done.stderr
    assert "step 2: " not in done.stderr
    for name, values in load_network(weights(tmp_path / "again")).state_dict().items():
        np.testing.assert_array_equal(values, undisturbed[name])


def test_scans_that_do_not_fit_in_memory_are_trained_on_from_files(
    fit, config: Path, out: Path
) -> None:
    assert fit().status == 0
    in_memory = weights(out).read_bytes()
    assert not (out / "scans").exists()
    done = fit("--overwrite", "--memory", "1B")
    assert done.status == 0, done.stderr
    assert len(list((out / "scans").iterdir())) == 3
    assert weights(out).read_bytes() == in_memory


def test_a_finished_training_is_not_repeated(fit, out: Path) -> None:
    fit()
    before, notes = load_file(weights(out)), read_notes(weights(out))
    weights(out).unlink()
    done = fit()
    assert done.status == 0
    assert "training is finished" in done.stderr
    assert "step 2: " not in done.stderr
    assert read_notes(weights(out)) == notes
    for name, values in load_file(weights(out)).items():
        np.testing.assert_array_equal(values, before[name])


def test_a_training_of_other_settings_is_not_taken_for_its_own(
    fit, out: Path, config: Path
) -> None:
    fit()
    config.write_text(CONFIG.replace("steps = 4", "steps = 6"))
    refused = fit()
    assert refused.status == 1
    assert "other settings (training.steps)" in refused.error
    assert fit("--overwrite").status == 0
    assert record(out)["record"]["losses"][5:]


def test_the_process_ends_with_130_at_ctrl_c(
    data: Path, config: Path, out: Path, tmp_path: Path
) -> None:
    config.write_text(CONFIG.replace("steps = 4", "steps = 100000\npatience = 100000"))
    process = Forked(COMMAND, "train", data, "--config", config, "-o", out, cwd=tmp_path)
    last = out / "checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "run it again to resume" in stderr
    assert last.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nlearning_rat = 1", "[training] learning_rat: no such key; known keys: steps"),
        ("[trainign]", "[trainign]: no such key; known keys: network, training, split, notes"),
        ("[training]\nlearning_rate = -1", "[training] learning_rate: "),
        ("[training]\nsteps = 1.5", "[training] steps: "),
        ("[training]\nsteps = true", "[training] steps: "),
        ("[training]\nlesion_share = 2", "[training] lesion_share: "),
        ("[training]\nsteps = 5\nevery = 6", "[training]: every = 6 is more than steps = 5"),
        ("[training]\nprecision = '16'", "[training] precision: "),
        ("[network]\nq_features = '3z'", "[network]: "),
        ("[network]\nfilter = 'x'", "[network]: "),
        ("[split]\nvalidation = ['09']", "[split] validation: "),
        ("[split]\nvalidation = []", "[split] validation: "),
        ("[split]\nvalidation = ['01', '02', '03']", "no participant is left for training"),
        ("[training", "not valid TOML"),
    ],
)
def test_a_bad_setting_is_one_line_with_file_and_key(
    fit, config: Path, text: str, message: str
) -> None:
    config.write_text(text)
    done = fit()
    assert done.status == 1
    assert done.error.startswith(f"error: {config}: ")
    assert message in done.error


def test_a_missing_file_of_settings_is_told(fit, config: Path) -> None:
    config.unlink()
    assert fit().error == f"error: {config}: No such file or directory."


def test_the_example_holds_the_defaults_and_needs_nothing_else(call: Call) -> None:
    done = call("train", "--example-config")
    assert (done.status, done.stdout) == (0, example_config(LesionConfig))
    assert parse_config(done.stdout, "example", LesionConfig) == LesionConfig()
    with pytest.raises(ConfigError, match="example"):
        parse_config(done.stdout + "\nunknown = 1", "example", LesionConfig)


def test_a_task_that_there_is_not_is_told_with_those_that_there_are(call: Call) -> None:
    for arguments in (("--example-config", "--task", "x"), ("--task", "x", "--example-config")):
        refused = call("train", *arguments)
        assert refused.status == 2
        assert "unknown task 'x'; known: fibres, lesions" in refused.stderr
    for place in (0, 2):
        words = ["--task", "lesions"]
        words.insert(place, "--example-config")
        assert call("train", *words).stdout == example_config(LesionConfig)


def test_a_sum_refuses_scans_of_other_voxels_by_name(fit, data: Path, config: Path) -> None:
    write_labelled(data, "sub-02", voxel_size=2.3)
    config.write_text(config.read_text().replace("[network]", '[network]\nquadrature = "sum"'))
    done = fit()
    assert done.status == 1
    assert "sub-02_dwi.nii.gz: voxels of 2.3 x 2.3 x 2.3 mm" in done.error
    assert 'choose quadrature = "integral", or resample' in done.error


def test_an_integral_is_trained_on_scans_of_several_voxel_sizes(fit, data: Path, out: Path) -> None:
    write_labelled(data, "sub-02", voxel_size=2.3)
    assert fit().status == 0
    assert read_notes(weights(out))["voxel_size_mm"] == "2 2.3"


def test_a_mask_of_another_grid_is_an_error_that_names_it(fit, data: Path) -> None:
    path = data / "derivatives/truth/sub-02/dwi/sub-02_label-lesion_mask.nii.gz"
    nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), AFFINE).to_filename(path)
    done = fit()
    assert done.status == 1
    assert f"{path}: a mask of shape (3, 3, 3)" in done.error


def test_nobody_can_be_validated_on_without_a_lesion(fit, data: Path, config: Path) -> None:
    path = data / "derivatives/truth/sub-03/dwi/sub-03_label-lesion_mask.nii.gz"
    nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE).to_filename(path)
    done = fit()
    assert done.status == 1
    assert f"{config}: [split]: the validation participants (03) have no lesion" in done.error


def test_scans_without_known_lesions_are_left_out_aloud(fit, data: Path) -> None:
    (data / "derivatives/truth/sub-02/dwi/sub-02_label-lesion_mask.nii.gz").unlink()
    done = fit()
    assert done.status == 0, done.stderr
    assert "sub-02/dwi/sub-02_dwi.nii.gz: left out" in done.stderr
    nothing = fit("--truth", data / "nowhere")
    assert "no such folder" in nothing.error


def test_participants_are_drawn_once_and_for_all() -> None:
    labels = [f"{i:02}" for i in range(10)]
    drawn = draw_validation(labels, share=0.3, seed=1)
    assert len(drawn) == 3
    assert drawn == draw_validation(labels[::-1], share=0.3, seed=1)
    assert {draw_validation(labels, seed=seed) for seed in range(5)} != {drawn}
    assert len(draw_validation(labels[:2], share=0.9)) == 1
    with pytest.raises(ValueError, match="another for validation"):
        draw_validation(labels[:1])


@pytest.mark.parametrize("module", ["lightning", "torchmetrics"])
def test_what_is_not_installed_is_told_in_one_line(
    fit, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    done = fit()
    assert done.status == 1
    assert done.stderr == f"error: {module} not installed: pip install 'tripq[ms]'.\n"


@pytest.mark.parametrize(
    ("name", "twin"),
    [("sub-04_dwi", "sub-04_dwi"), ("sub-04_acq-x_run-1_dwi", "sub-04_run-1_acq-x_dwi")],
)
def test_scans_of_one_name_are_left_out(name: str, twin: str, data: Path) -> None:
    folder = data / "sub-04/dwi"
    folder.mkdir(parents=True)
    for path in (folder / f"{name}.nii.gz", folder / f"{twin}.nii"):
        shutil.copy(data / "sub-01/dwi/sub-01_dwi.nii.gz", path)
    found = find_labelled(data, data / "derivatives/truth")
    assert found.participants == ("01", "02", "03")
    names = [f"sub-04/dwi/{name}.nii.gz", f"sub-04/dwi/{twin}.nii"]
    assert found.left_out.keys() == set(names)
    for place, other in (names, names[::-1]):
        assert found.left_out[place] == f"it has the same name as {other}: keep one of them"


def test_tables_of_mrtrix_are_trained_on_in_world_axes(data: Path) -> None:
    stem = data / "sub-01/dwi/sub-01_dwi"
    table = np.c_[np.loadtxt(f"{stem}.bvec").T, np.loadtxt(f"{stem}.bval")]
    np.savetxt(f"{stem}.b", table)
    first = find_labelled(data, data / "derivatives/truth", "world").files[0]
    assert [path.name for path in first.all[:2]] == ["sub-01_dwi.nii.gz", "sub-01_dwi.b"]
    q = read_labelled(first, "world").dwi.q
    expected = table[table[:, 3] > 0]
    assert np.abs(q[1:] - expected[:, :3] * np.sqrt(expected[:, 3:] / 1000)).max() < 1e-6
