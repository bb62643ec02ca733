"""A scan as it comes: the right voxels, in bounded memory, and what was done is told."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.commands.conftest import tiny_network
from tripq import PQGraph
from tripq.networks.apply import bytes_per_voxel, fits, least_voxels, voxels_within
from tripq.networks.checkpoint import CheckpointError, save_network
from tripq.networks.conv import ConvSegmenter
from tripq.networks.paper import PaperSegmenter
from tripq.scans import DWI, DWIError
from tripq.scans.resampling import map_back, resample
from tripq.tasks.lesions.segmentation import Model, load_model, segment, segment_scan
from tripq.tasks.lesions.segmenter import LesionSegmenter


def make_scan(
    voxel_size: tuple[float, ...] = (2, 2, 2), b_values: tuple[float, ...] = (1000,)
) -> DWI:
    rng = np.random.default_rng(0)
    shape = (14, 12, 10)
    n = int(np.prod(shape))
    b = np.array([0.0, *4 * b_values])
    directions = rng.normal(size=(len(b), 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return DWI(
        signal=np.c_[np.ones(n), rng.random((n, len(b) - 1))].astype(np.float32),
        b_values=b,
        q=np.sqrt(b / 1000)[:, None] * directions,
        mask=np.ones(shape, dtype=bool),
        affine=np.diag([*voxel_size, 1.0]),
        b0=np.full(n, 300, dtype=np.float32),
    )


def make_model(network: nn.Module | None = None, **changes: object) -> Model:
    torch.manual_seed(0)
    network = network or LesionSegmenter(
        p_radius=2.9, q_features="4x0e+2x2e", p_features="3x0e+2x1o", n_p_layers=1
    )
    model = Model(
        path=Path("net.safetensors"),
        sha256="",
        network=network.eval(),
        voxel_sizes=(2.0, 2.0),
        b_values=(1000.0,),
        caution="",
    )
    return replace(model, **changes)


class Greedy(nn.Module):
    """The number of voxels in the block; it runs out of memory where there are too many."""

    def __init__(self, limit: int, error: Exception) -> None:
        super().__init__()
        self.limit, self.error = limit, error
        self.sizes: list[int] = []

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        self.sizes.append(len(signal))
        if len(signal) > self.limit:
            raise self.error
        return signal.mean(dim=1)


def test_voxels_of_the_right_size_are_segmented_as_they_are() -> None:
    dwi, model = make_scan((2.05, 1.95, 2.0)), make_model()
    result = segment_scan(model, dwi)
    np.testing.assert_array_equal(result.probability, segment(model.network, dwi))
    assert result.notes == ()


@pytest.mark.parametrize("voxel_size", [(2.2, 2.2, 2.2), (2.0, 2.0, 2.5), (1.5, 2.0, 2.0)])
def test_other_voxels_are_brought_to_the_size_of_the_training(
    voxel_size: tuple[float, ...],
) -> None:
    dwi, model = make_scan(voxel_size), make_model()
    result = segment_scan(model, dwi)
    suited = resample(dwi, 2.0)
    expected = map_back(segment(model.network, suited), suited, dwi)
    np.testing.assert_array_equal(result.probability, expected)
    assert result.dwi is dwi
    assert "resampled to 2 mm, a size that the network was trained on" in result.notes[0]


def test_a_scan_fits_within_5_percent_on_every_edge() -> None:
    assert fits(make_scan((2.09, 1.91, 2.0)), (2.0, 2.0))
    assert not fits(make_scan((2.0, 2.0, 2.11)), (2.0, 2.0))
    assert fits(make_scan((1.45, 2.0, 3.1)), (1.5, 3.0))
    assert not fits(make_scan((1.4, 2.0, 3.0)), (1.5, 3.0))


def test_what_the_training_never_saw_is_told() -> None:
    told = segment_scan(make_model(), make_scan(b_values=(1150, 2000))).notes
    assert told == ("b = 2000 s/mm2 was excluded: the training had b = 1000.",)


def test_fewer_directions_than_in_training_are_told() -> None:
    scan = make_scan()  # four directions
    assert segment_scan(make_model(fewest_directions=4), scan).notes == ()
    (told,) = segment_scan(make_model(fewest_directions=5), scan).notes
    assert told == (
        "4 directions of b = 1000 s/mm2 are fewer than on any shell in training (5): the map "
        "may be unreliable."
    )
    for edge, coarse in ((2.9, False), (3.1, True)):
        told = segment_scan(make_model(), make_scan((2.0, 2.0, edge))).notes
        assert (len(told) == 2) == coarse
        assert ("trained on much finer voxels: 3.1 mm mix" in told[-1]) == coarse
    told = segment_scan(make_model(voxel_sizes=None, b_values=()), make_scan((3, 3, 3))).notes
    assert len(told) == 1
    assert "does not record a voxel size" in told[0]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_tried_again_with_smaller_blocks(error: Exception) -> None:
    network = Greedy(1200, error)
    result = segment_scan(make_model(network), dwi := make_scan())
    first, *_ = network.sizes
    assert first > 1200
    assert max(network.sizes[1:]) <= 1200
    assert "Out of memory: tried again with blocks of 840 voxels." in result.notes
    expected = 1 / (1 + np.exp(-dwi.signal.mean(axis=1)))
    np.testing.assert_allclose(result.probability, expected, rtol=1e-5)


def test_out_of_memory_for_good_is_told_and_other_errors_are_kept() -> None:
    with pytest.raises(MemoryError, match="out of memory even with blocks of 64 voxels"):
        segment_scan(make_model(Greedy(10, MemoryError())), make_scan())
    with pytest.raises(RuntimeError, match="sizes do not match"):
        segment_scan(make_model(Greedy(10, RuntimeError("sizes do not match"))), make_scan())


def test_a_network_for_another_table_is_refused_by_the_name_of_its_file() -> None:
    with pytest.raises(CheckpointError, match=r"net\.safetensors: this network was made for 7 dir"):
        segment_scan(make_model(ConvSegmenter(7, widths=(2,))), make_scan())
    with pytest.raises(DWIError, match="b-values up to 9000"):
        segment_scan(make_model(), make_scan(b_values=(9000,)))


def test_memory_is_for_voxels_what_the_scan_leaves() -> None:
    dwi, network = make_scan(), LesionSegmenter()
    each = bytes_per_voxel(network, 5)
    more = voxels_within(2e9, network, dwi) - voxels_within(1e9, network, dwi)
    assert more == pytest.approx(1e9 / each, abs=1)
    held = voxels_within(2e9, network, dwi) - voxels_within(2e9, network, dwi, held=10**8)
    assert held == pytest.approx(1e8 / each, abs=1)
    with pytest.raises(DWIError, match=r"0\.30 GB of memory are not enough; at least 0\.6"):
        voxels_within(0.3e9, network, dwi)
    wide = PaperSegmenter(p_radius=5.0)  # looks 10 voxels far
    assert least_voxels(wide, dwi) == 30**3
    assert voxels_within(0.6e9 + 30**3 * bytes_per_voxel(wide, 5) + 1e6, wide, dwi) >= 30**3
    assert bytes_per_voxel(PaperSegmenter(), 60) > 1.9 * bytes_per_voxel(PaperSegmenter(), 30)


PROBE = """
import re, sys
from pathlib import Path
import numpy as np
from tripq.scans import DWI
from tripq.tasks.lesions.segmenter import LesionSegmenter
from tripq.networks.paper import PaperSegmenter
from tripq.tasks.lesions.segmentation import Model, segment_scan
network = {"lesion": LesionSegmenter, "paper": PaperSegmenter}[sys.argv[1]]().eval()
n, q = int(sys.argv[3]), 33
rng = np.random.default_rng(0)
directions = rng.normal(size=(q, 3))
directions /= np.linalg.norm(directions, axis=1, keepdims=True)
directions[0] = 0
dwi = DWI(
    signal=rng.random((n**3, q), dtype=np.float32), b_values=np.r_[0, np.full(q - 1, 1000.0)],
    q=directions, mask=np.ones((n, n, n), bool), affine=np.diag([2.0, 2, 2, 1]),
    b0=np.ones(n**3, np.float32),
)
model = Model(path=None, sha256="", network=network, voxel_sizes=(2.0, 2.0),
              b_values=(), caution="")
segment_scan(model, dwi, memory=float(sys.argv[2]))
# not ru_maxrss, which begins with the memory of the process that started this one
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/status")
@pytest.mark.parametrize(
    ("network", "memory", "edge"),
    [("lesion", 0.7e9, 26), pytest.param("paper", 1.5e9, 36, marks=pytest.mark.exhaustive)],
)
def test_the_program_stays_within_the_memory(
    network: str, memory: float, edge: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, network, str(memory), str(edge)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1.1 * memory


def test_a_checkpoint_says_what_it_is_for(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    network = LesionSegmenter(p_radius=2.9)
    notes = {"threshold": "0.37", "voxel_size_mm": "1.8", "b_values": "[7e2, 1200.5]"}
    notes |= {"fewest_directions": "12", "min_volume_ml": "0.02"}
    notes["healthy_heads"] = "On 15 scans it marked 0.05 ml.\n\x1b[2J"
    save_network(network, path, {**notes, "caution": "careful"})
    model = load_model(path)
    assert (model.threshold, model.voxel_sizes, model.caution) == (0.37, (1.8, 1.8), "careful")
    assert model.b_values == (700.0, 1200.5)
    assert model.fewest_directions == 12
    assert model.min_volume == 0.02
    assert model.healthy_heads == r"On 15 scans it marked 0.05 ml.\n\x1b[2J"
    save_network(network, path)
    model = load_model(path)
    assert (model.threshold, model.voxel_sizes, model.b_values) == (0.5, None, ())
    assert (model.min_volume, model.healthy_heads) == (0.0, "")


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        ({"threshold": "high"}, "its threshold is 'high', not a number"),
        ({"threshold": "0.2 0.3"}, "its threshold is '0.2 0.3', not one number"),
        ({"b_values": "1000 high"}, "its b_values is '1000 high', not a number"),
        ({"b_values": "nan"}, "its b_values is 'nan', not a number"),
        ({"b_values": "1000 -inf"}, "its b_values is '1000 -inf', not a number"),
        ({"b_values": "1e400"}, "its b_values is '1e400', not a number"),
        ({"b_values": "x" * 9000}, "its b_values is 'x{30}\\.\\.\\.', not a number"),
        ({"threshold": "1.2"}, "its threshold is 1.2, not from 0 to 1"),
        ({"threshold": "nan"}, "its threshold is 'nan', not a number"),
        ({"min_volume_ml": "nan"}, "its min_volume_ml is 'nan', not a number"),
        ({"min_volume_ml": "small"}, "its min_volume_ml is 'small', not a number"),
        ({"min_volume_ml": "-0.1"}, "its min_volume_ml is -0.1, not from 0 to 1000"),
        ({"min_volume_ml": "1e9"}, "its min_volume_ml is 1000000000.0, not from 0 to 1000"),
        ({"healthy_heads": "x" * 501}, "its healthy_heads has 501 characters; at most 500"),
        ({"fewest_directions": "inf"}, "its fewest_directions is 'inf', not a number"),
        ({"fewest_directions": "nan"}, "its fewest_directions is 'nan', not a number"),
        ({"fewest_directions": "-1"}, "its fewest_directions is -1.0, not a number of directions"),
        ({"voxel_size_mm": "0"}, "its voxel size is 0.0 mm, not from 0.01 to 100"),
        ({"voxel_size_mm": "inf"}, "its voxel_size_mm is 'inf', not a number"),
    ],
)
def test_a_note_without_sense_is_refused(note: dict[str, str], reason: str, tmp_path: Path) -> None:
    save_network(tiny_network(), tmp_path / "net.safetensors", note)
    with pytest.raises(CheckpointError, match=reason):
        load_model(tmp_path / "net.safetensors")
