"""Training learns, keeps to its budget, and can be repeated."""

from __future__ import annotations

import errno
import inspect
import json
import math
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, get_type_hints

import numpy as np
import pytest
import torch
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics import Metric

from tripq import PQGraph
from tripq.domain.voxels import neighbour_steps
from tripq.filters.filter import TYPICAL_VOXEL_MM
from tripq.networks.blocks import graph_radius
from tripq.networks.conv import ConvSegmenter
from tripq.scans import DWI
from tripq.tasks.lesions.config import LesionNetworkConfig, LesionOptimisationConfig
from tripq.tasks.lesions.datasets import draw_validation
from tripq.tasks.lesions.scores import score
from tripq.tasks.lesions.segmentation import segment
from tripq.tasks.lesions.segmenter import LesionSegmenter
from tripq.tasks.lesions.task import LesionTask
from tripq.training import (
    Budget,
    PatchDataModule,
    Progress,
    Stopping,
    TaskModule,
    choose_precision,
    cut_box,
    learning_rate_factor,
    train,
)
from tripq.training.config import SplitConfig
from tripq.training.configured import build_encoder

pytestmark = pytest.mark.usefixtures("few_settling")

AFFINE = np.array([[0, -2.0, 0, 7], [2.0, 0, 0, -3], [0, 0, 2.5, 1], [0, 0, 0, 1]])
Q = np.concatenate([np.zeros((1, 3)), np.eye(3)])


def labelled_scan(seed: int, shape: tuple[int, int, int] = (12, 11, 10)) -> SimpleNamespace:
    """A ball of tissue whose signal is lower in one corner, which is the lesion."""
    rng = np.random.default_rng(seed)
    i, j, k = np.indices(shape)
    mask = (i - 6) ** 2 + (j - 5) ** 2 + (k - 5) ** 2 < 30
    lesion = ((i < 6) & (j < 5))[mask]
    n = np.count_nonzero(mask)
    weighted = 0.6 - 0.3 * lesion[:, None] + rng.normal(0, 0.1, (n, 3))
    dwi = DWI(
        signal=np.concatenate([np.ones((n, 1)), weighted], axis=1, dtype=np.float32),
        b_values=np.array([0.0, 1000, 1000, 1000]),
        q=Q,
        mask=mask,
        affine=AFFINE,
        b0=np.ones(n, dtype=np.float32),
    )
    return SimpleNamespace(dwi=dwi, lesion=lesion)


def equivariant(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    # With "q", the weights for the constant b0 would only move what batch norm takes away.
    return LesionSegmenter(
        p_radius=2.6,
        q_features="4x0e+2x2e",
        p_features="4x0e+1x1o",
        n_p_layers=1,
        filter="tp",
        selection="paper",
    )


def convolutional(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return ConvSegmenter(4, widths=(6,))


def boxes(seed: int = 0, **options: object) -> PatchDataModule:
    scans = [labelled_scan(0), labelled_scan(1)]
    return PatchDataModule(
        scans, LesionTask(), radius=2.6, seed=seed, box_size=8, n_boxes=2, **options
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [equivariant, convolutional])
def test_training_finds_the_lesion(make) -> None:  # type: ignore[no-untyped-def]
    network = make()
    record = train(network, boxes(), Budget(steps=30), learning_rate=1e-2)
    assert record.steps == 30
    assert np.mean(record.losses[-5:]) < 0.5 * np.mean(record.losses[:5])

    unseen = labelled_scan(2)
    probability = segment(network, unseen.dwi)
    assert probability[unseen.lesion].mean() > probability[~unseen.lesion].mean() + 0.4


@pytest.mark.parametrize("make", [equivariant, convolutional])
def test_the_same_seed_gives_the_same_weights(make) -> None:  # type: ignore[no-untyped-def]
    first, second, other = make(), make(), make()
    for network, seed in ((first, 3), (second, 3), (other, 4)):
        train(network, boxes(seed), Budget(steps=3))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    pairs = zip(first.parameters(), other.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


def test_time_ends_training_with_a_low_learning_rate() -> None:
    progress: list[Progress] = []
    start = time.perf_counter()
    record = train(convolutional(), boxes(), Budget(seconds=0.5), report=progress.append)
    assert record.seconds >= 0.5
    # One step and the start of the trainer on top.
    assert time.perf_counter() - start < 20
    assert len(progress) == record.steps > 1
    assert [p.spent for p in progress] == sorted(p.spent for p in progress)
    assert progress[-1].spent == 1.0


def test_a_loss_that_is_no_number_is_an_error() -> None:
    with pytest.raises(FloatingPointError, match="learning rate below 1e"):
        train(convolutional(), boxes(), Budget(steps=20), learning_rate=1e30)


@pytest.mark.parametrize("make", [equivariant, convolutional])
def test_the_weights_of_the_best_validation_are_kept(make) -> None:  # type: ignore[no-untyped-def]
    network, validation = make(), [labelled_scan(2), labelled_scan(3)]
    stopping = Stopping(every=3, patience=2, decay=0.5, warm_up=4)
    record = train(
        network, boxes(validation=validation), Budget(steps=40), stopping=stopping, settle=False
    )
    # Every third step, and the last one.
    assert [step for step, _ in record.scores] == sorted(
        {*range(3, record.steps + 1, 3), record.steps}
    )
    assert record.best is not None
    step, best = record.best
    assert best == max(value for _, value in record.scores)
    # Stopped two validations after the best one, or by the budget.
    assert record.steps == min(40, step + 3 * stopping.patience)

    # All voxels in one row, as they were scored.
    probability = np.concatenate([segment(network, scan.dwi) for scan in validation])
    lesion = np.concatenate([scan.lesion for scan in validation])
    assert score(probability, lesion, 0.5).average_precision == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("falling", [False, True])
def test_the_learning_rate_stays_or_falls_with_the_budget(
    falling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    step = torch.optim.AdamW.step

    def noted(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    train(
        convolutional(),
        boxes(validation=[labelled_scan(2)]),
        Budget(steps=20),
        stopping=Stopping(every=20, warm_up=4, falling=falling),
        learning_rate=0.01,
    )
    if falling:
        middles = (np.arange(20) + 0.5) / 20
        assert rates == pytest.approx([0.01 * learning_rate_factor(m) for m in middles])
    else:
        risen = 0.01 * np.array([0.125, 0.375, 0.625, 0.875])
        assert rates == pytest.approx([*risen, *[0.01] * 16])


@pytest.mark.parametrize(
    ("settle", "falling"),
    [
        (False, True),
        (True, False),
        pytest.param(False, False, marks=pytest.mark.exhaustive),
        pytest.param(True, True, marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("make", [equivariant, convolutional])
def test_interrupted_training_goes_on_as_if_it_had_not_been(  # type: ignore[no-untyped-def]
    make, settle: bool, falling: bool, tmp_path: Path
) -> None:
    def run(network: nn.Module, folder: Path, stop: int | None = None):  # type: ignore[no-untyped-def]
        def report(progress: Progress) -> None:
            if progress.steps == stop:
                raise KeyboardInterrupt

        return train(
            network,
            boxes(validation=[labelled_scan(2)]),
            Budget(steps=9),
            stopping=Stopping(every=2, patience=9, decay=0.9, falling=falling),
            folder=folder,
            settle=settle,
            report=report,
        )

    whole, parts = make(), make()
    record = run(whole, tmp_path / "whole")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(parts, tmp_path / "parts", stop=7)
    assert signal.getsignal(signal.SIGINT) is handler
    again = make()  # a new process would start with new weights
    resumed = run(again, tmp_path / "parts")

    assert (resumed.losses, resumed.scores) == (record.losses, record.scores)
    # And what is finished is not done again.
    third = make()
    repeated = run(third, tmp_path / "parts", stop=1)
    assert (repeated.losses, repeated.scores) == (record.losses, record.scores)
    for network in (again, third):
        assert not network.training
        for a, b in zip(whole.state_dict().values(), network.state_dict().values(), strict=True):
            assert torch.equal(a, b)


class NeverBetter(Metric):
    """The same score in every validation."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        pass

    def compute(self) -> Tensor:
        return torch.tensor(0.5)


class Level(LesionTask):
    def metric(self) -> Metric:
        return NeverBetter()


def train_level(network: nn.Module, folder: Path, returned: Literal["best", "last"]) -> None:
    """Three validations, of which the first is the best."""
    patches = PatchDataModule(
        [labelled_scan(0)],
        Level(),
        radius=2.6,
        box_size=8,
        n_boxes=2,
        validation=[labelled_scan(2)],
    )
    stopping = Stopping(every=2, patience=9, returned=returned)
    train(network, patches, Budget(steps=6), stopping=stopping, folder=folder)


def test_a_training_goes_on_at_its_last_validation_not_at_its_best(tmp_path: Path) -> None:
    train_level(convolutional(), tmp_path, "best")
    steps = [
        torch.load(tmp_path / name, weights_only=True)["global_step"]
        for name in ("best.ckpt", "last.ckpt")
    ]
    assert steps == [2, 6]


@pytest.mark.parametrize("returned", ["best", "last"])
def test_weights_are_those_of_the_best_or_of_the_last_validation(
    tmp_path: Path, returned: Literal["best", "last"]
) -> None:
    trained, again = convolutional(), convolutional()
    train_level(trained, tmp_path, returned)
    train_level(again, tmp_path, returned)  # read, not trained
    kept = torch.load(tmp_path / f"{returned}.ckpt", weights_only=True)["state_dict"]
    for network in (trained, again):
        for name, values in network.state_dict().items():
            assert torch.equal(values, kept[f"network.{name}"])


def test_half_precision_learns_the_same() -> None:
    records = [
        train(equivariant(), boxes(), Budget(steps=20), precision=precision)
        for precision in ("32-true", "bf16-mixed")
    ]
    losses = np.array([record.losses for record in records])
    assert not np.array_equal(losses[0], losses[1])
    np.testing.assert_allclose(losses[1], losses[0], atol=0.05)


def test_a_small_gain_is_no_rise() -> None:
    record = train(
        convolutional(),
        boxes(validation=[labelled_scan(2)]),
        Budget(steps=40),
        stopping=Stopping(every=1, patience=2, rise=0.999),  # the first validation, and no more
    )
    assert record.steps == 3


def test_stopping_needs_scans_to_validate_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs validation scans"):
        train(convolutional(), boxes(), Budget(steps=1), stopping=Stopping())
    with pytest.raises(ValueError, match="folder needs stopping"):
        train(convolutional(), boxes(), Budget(steps=1), folder=tmp_path)
    for numbers in ({"every": 0}, {"patience": 0}, {"warm_up": 0}, {"decay": 1.0}, {"rise": -1.0}):
        with pytest.raises(ValueError, match="stopping needs"):
            Stopping(**numbers)  # type: ignore[arg-type]
    healthy = labelled_scan(2)
    healthy.lesion = np.zeros_like(healthy.lesion)
    with pytest.raises(ValueError, match="none of the 1 validation scans"):
        boxes(validation=[healthy])


@given(st.integers(0, 2**32 - 1), st.integers(1, 14))
def test_a_box_holds_the_voxels_of_the_scan(seed: int, box_size: int) -> None:
    scan = labelled_scan(0)
    dwi = scan.dwi
    centre = np.random.default_rng(seed).integers(-3, 15, size=3)
    signal, graph, lesion = cut_box(scan, LesionTask(), centre, box_size, radius=2.6)

    # World coordinates tell which voxels they are.
    place = {tuple(p): row for row, p in enumerate(dwi.voxel_centres().round(6))}
    rows = [place[tuple(p)] for p in graph.p.numpy().round(6)]
    np.testing.assert_array_equal(signal.numpy(), dwi.signal[rows])
    np.testing.assert_array_equal(lesion.numpy(), scan.lesion[rows])
    assert len(set(rows)) == len(rows)
    if box_size >= max(dwi.mask.shape):
        assert len(rows) == len(dwi.b0)


def test_a_box_shows_the_contrast_of_b0_as_the_scan_has_it() -> None:
    """Not relative to the median of the box, of which a network knows nothing later."""
    made = labelled_scan(0)
    b0 = np.linspace(200, 600, len(made.dwi.b0), dtype=np.float32)
    scan = SimpleNamespace(dwi=replace(made.dwi, b0=b0), lesion=made.lesion)
    centre = np.array([3, 3, 3])
    boxes = [
        cut_box(scan, LesionTask(), centre, 5, 2.6, change, b0_contrast=True)[0]
        for change in (None, lambda box: replace(box, b0=2 * box.b0))
    ]
    inside = np.zeros_like(made.dwi.mask)
    inside[1:6, 1:6, 1:6] = True
    rows = inside[made.dwi.mask]
    np.testing.assert_allclose(boxes[0][:, 0], scan.dwi.b0_contrast[rows], rtol=1e-6)
    np.testing.assert_allclose(boxes[1][:, 0], 2 * scan.dwi.b0_contrast[rows], rtol=1e-6)
    np.testing.assert_array_equal(boxes[0][:, 1:], made.dwi.signal[rows, 1:])


def test_boxes_and_network_must_agree_on_the_contrast_of_b0() -> None:
    network = LesionSegmenter(b0_contrast=True)
    patches = PatchDataModule([labelled_scan(0)], LesionTask(), radius=graph_radius(network))
    with pytest.raises(ValueError, match="b0_contrast=True, and the boxes False"):
        train(network, patches, Budget(steps=1))


def test_boxes_of_one_scan_become_one_graph() -> None:
    batch = next(
        iter(PatchDataModule([labelled_scan(0)], LesionTask(), radius=2.6, n_boxes=3).patches)
    )
    assert len(batch.graph.scans) == 1
    assert len(batch.graph.scans[0].grid.shapes) == 3  # type: ignore[union-attr]
    assert len(batch.signal) == len(batch.target) == batch.graph.n_voxels


def test_boxes_are_placed_on_lesions_as_often_as_asked() -> None:
    scan = labelled_scan(0, shape=(12, 11, 40))
    scan.lesion = scan.lesion & (np.arange(len(scan.lesion)) < 3)

    def hits(focus_share: float) -> float:
        module = PatchDataModule(
            [scan], LesionTask(), radius=0.0, box_size=3, focus_share=focus_share
        )
        batches = iter(module.patches)
        return float(np.mean([bool(next(batches).target.any()) for _ in range(100)]))

    assert hits(0.0) < 0.2
    assert hits(1.0) > 0.3


def test_a_cohort_without_lesions_is_refused() -> None:
    healthy = labelled_scan(0)
    healthy.lesion = np.zeros_like(healthy.lesion)
    with pytest.raises(ValueError, match="none of the 1 training scans has a lesion"):
        PatchDataModule([healthy], LesionTask(), radius=2.6)
    with pytest.raises(ValueError, match="box_size=0"):
        PatchDataModule([labelled_scan(0)], LesionTask(), radius=2.6, box_size=0)


def test_a_budget_is_spent_by_time_or_steps() -> None:
    assert Budget(seconds=10).spent(seconds=4, steps=1000) == 0.4
    assert Budget(steps=10).spent(seconds=1e9, steps=2) == 0.2
    assert Budget(10, 10).spent(seconds=20, steps=2) == 1.0
    for arguments in ({}, {"seconds": 0.0}, {"seconds": math.nan}, {"steps": 0}):
        with pytest.raises(ValueError, match="budget"):
            Budget(**arguments)  # type: ignore[arg-type]


@given(st.floats(0, 1))
def test_the_learning_rate_rises_and_falls_to_nothing(spent: float) -> None:
    assert 0 <= learning_rate_factor(spent) <= 1
    assert learning_rate_factor(0.0) == 0
    assert learning_rate_factor(1.0) < 1e-12


def test_graphs_of_boxes_are_those_of_the_scan() -> None:
    """The edges of a box that is the whole scan are the edges of the scan."""
    scan = labelled_scan(0)
    _, graph, _ = cut_box(scan, LesionTask(), np.array([5, 5, 5]), 20, radius=2.6)
    whole = PQGraph.from_grid(scan.dwi.mask, AFFINE, Q, 2.6)
    assert torch.equal(graph.scans[0].edges.dst, whole.scans[0].edges.dst)
    assert torch.equal(graph.scans[0].edges.offsets, whole.scans[0].edges.offsets)


class Payload:
    """Leaves a file where a pickle of it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:  # type: ignore[type-arg]
        return Path.touch, (self.path,)


def test_no_checkpoint_can_run_a_program(tmp_path: Path) -> None:
    """Checkpoints of Lightning are pickles, of which only tensors, numbers and words are taken."""
    folder, traces = tmp_path / "checkpoints", tmp_path / "traces"
    folder.mkdir()
    torch.save({"state_dict": {}, "more": Payload(traces)}, folder / "last.ckpt")
    patches = boxes(validation=[labelled_scan(2)])
    how = {"stopping": Stopping(every=1), "folder": folder}
    with pytest.raises(ValueError, match=r"checkpoints/last\.ckpt: damaged, or written by another"):
        train(convolutional(), patches, Budget(steps=2), **how)  # type: ignore[arg-type]
    assert not traces.exists()
    torch.load(folder / "last.ckpt", weights_only=False)
    assert traces.exists()  # so it was one


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("last.ckpt", b""),
        ("last.ckpt", b"PK\x03\x04 and no more"),
        ("best.ckpt", None),
        ("best.ckpt", b"text"),
        ("training.json", b"{}"),
        ("training.json", b"[1, 2"),
    ],
)
def test_a_damaged_folder_of_checkpoints_says_so(
    name: str, content: bytes | None, tmp_path: Path
) -> None:
    finished = {"losses": [1.0], "seconds": 1.0, "scores": [[1, 0.5]]}
    if name != "last.ckpt":
        (tmp_path / "training.json").write_text(json.dumps(finished))
    if content is not None:
        (tmp_path / name).write_bytes(content)
    patches = boxes(validation=[labelled_scan(2)])
    with pytest.raises(ValueError, match=rf"{name}: .* To start again, remove .*--overwrite"):
        train(
            convolutional(), patches, Budget(steps=2), stopping=Stopping(every=1), folder=tmp_path
        )


def test_a_checkpoint_that_cannot_be_written_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io._atomic_save", full)
    how = {"stopping": Stopping(every=1), "folder": tmp_path}
    patches = boxes(validation=[labelled_scan(2)])
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}'"):
        train(convolutional(), patches, Budget(steps=2), **how)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert train(convolutional(), patches, Budget(steps=2), **how).steps == 2  # type: ignore[arg-type]


# -- settings ------------------------------------------------------------------------------------


def defaults(call):
    """Default of every keyword argument of a function or a class."""
    return {
        name: argument.default
        for name, argument in inspect.signature(call).parameters.items()
        if argument.default is not inspect.Parameter.empty
    }


def test_the_settings_of_a_network_are_the_arguments_of_its_constructor():
    """All but its radial functions, which are chosen in Python only."""
    hints = get_type_hints(LesionNetworkConfig)
    expected, types = defaults(LesionSegmenter), get_type_hints(LesionSegmenter.__init__)
    del expected["p_radial"], expected["q_radial"]
    assert asdict(LesionNetworkConfig()) == {**expected, "p_radius": None}
    for name in expected.keys() - {"p_radius"}:
        text = types[name] == o3.Irreps | str
        assert hints[name] == (str if text else types[name]), name
    assert hints["p_radius"] == types["p_radius"] | None


def test_by_default_the_command_trains_the_network_of_the_library():
    """On voxels of 2 mm, which the default radius is for; elsewhere the radius follows them."""
    sizes = (TYPICAL_VOXEL_MM, TYPICAL_VOXEL_MM)
    ours, default = build_encoder(LesionSegmenter, LesionNetworkConfig(), sizes), LesionSegmenter()
    assert repr(ours) == repr(default)
    assert {name: getattr(ours, name) for name in defaults(LesionSegmenter)} == defaults(
        LesionSegmenter
    )
    assert ours.state_dict().keys() == default.state_dict().keys()
    for size in (1.25, 2.0, 2.5):
        radius = build_encoder(
            LesionSegmenter, LesionNetworkConfig(n_p_layers=0), (size, size)
        ).p_radius
        assert len(neighbour_steps(size * np.eye(3), radius, "integral")) == 27
    several = build_encoder(LesionSegmenter, LesionNetworkConfig(n_p_layers=0), (1.0, 4.0))
    assert several.p_radius == default.p_radius, "of the geometric mean"


#: Arguments that are objects, or follow from the network, and so are no settings.
PYTHON_ONLY = {"validation", "augment", "returned", "b0_contrast"}

#: Settings of which nothing in the library has a default: how long to train at most.
NOT_DEFAULTS = {"steps", "hours"}


def test_the_settings_of_a_training_are_the_arguments_of_what_is_called():
    given = {"network", "patches", "budget", "stopping", "folder", "device", "report", "settle"}
    given |= {"kept"}
    elsewhere = defaults(train).keys() & given
    options = {
        **{k: v for k, v in defaults(Stopping).items() if k not in PYTHON_ONLY},
        **{name: value for name, value in defaults(train).items() if name not in given},
        **{k: v for k, v in defaults(PatchDataModule).items() if k not in PYTHON_ONLY},
        **defaults(LesionTask),
    }
    options["lesion_share"] = options.pop("focus_share")  # the lesions are what matters
    options["augment"] = False  # an object in Python
    settings = {
        k: v for k, v in asdict(LesionOptimisationConfig()).items() if k not in NOT_DEFAULTS
    }
    assert settings == options
    assert elsewhere == given - {"network", "patches", "budget"}
    same = ("learning_rate", "weight_decay")
    module = defaults(TaskModule)
    assert {name: module[name] for name in same} == {name: options[name] for name in same}
    assert (
        get_type_hints(LesionOptimisationConfig)["precision"] == get_type_hints(train)["precision"]
    )


def test_the_settings_of_a_split_are_those_of_its_draw():
    split = asdict(SplitConfig())
    assert {name: split[name] for name in defaults(draw_validation)} == defaults(draw_validation)


# -- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("able", "chosen"),
    [
        ({"avx2": True, "avx512_bf16": False}, "32-true"),
        ({"avx512_bf16": True}, "bf16-mixed"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16-mixed"),
        ({}, "32-true"),
    ],
)
def test_bfloat16_is_for_processors_that_have_it(able, chosen, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert choose_precision("auto", "cpu") == chosen
    for wanted in ("32-true", "bf16-mixed"):
        assert choose_precision(wanted, "cpu") == wanted


def test_an_older_torch_that_does_not_say_is_taken_for_one_without(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision("auto", "cpu") == "32-true"


@pytest.mark.parametrize("able", [False, True])
def test_so_it_is_for_gpus(able, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able)
    assert choose_precision("auto", "cuda") == ("bf16-mixed" if able else "32-true")


@pytest.mark.parametrize("precision", ["auto", "32-true"])
def test_the_record_says_what_was_computed_in(precision, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    record = train(convolutional(), boxes(), Budget(steps=1), precision=precision)
    assert record.precision == "32-true"
