"""One scan has one map, however it is written down and however the work is split.

Everything goes through files and the whole program, and is compared voxel by voxel in the world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.laws.conftest import ROUNDING, Head, Map, assert_same, make_head, sampled, segment, tripq
from tripq import PQTensorFieldLayer
from tripq.commands import segmenting
from tripq.infra.memory import PROGRAM_BYTES
from tripq.networks import blocks
from tripq.networks.apply import bytes_per_voxel, least_voxels
from tripq.scans import read_dwi
from tripq.tasks.lesions.command import LesionCommands
from tripq.tasks.lesions.segmentation import load_model

Written = Callable[[Head], Map]

FRAMES = ("fsl", "voxel", "world")
STORAGES = list(product(permutations(range(3)), product((1, -1), repeat=3)))
"""All 48: the order of the axes of the file, and which of them run the other way."""

HANDFUL = (0, 8, 16, 29, 33, 37, 43)
"""All orders of the axes, and every frame with both determinants."""


# -- how a scan is stored ------------------------------------------------------------------------


@pytest.mark.parametrize("linear", ["plain", "oblique"])
@pytest.mark.parametrize("number", sampled(range(48), HANDFUL))
def test_the_storage_of_a_scan_changes_no_map(
    number: int, linear: str, written: Written, tmp_path: Path
) -> None:
    """In one of the three frames each, so that every frame meets both determinants."""
    head, frame = make_head(linear), FRAMES[number % 3]
    found = segment(head.stored(*STORAGES[number]), tmp_path, frame=frame)
    assert_same(found.at(head.scan.affine), written(head).volume)


@pytest.mark.parametrize("numbers", [range(48), HANDFUL])
def test_every_frame_meets_both_determinants(numbers: Iterable[int]) -> None:
    """Of the plain head alone: half of the storages are mirrors of the others."""
    affine = make_head().scan
    met = {
        (FRAMES[number % 3], np.linalg.det(affine.reoriented(*storage).affine) > 0)
        for number, storage in enumerate(STORAGES)
        if number in numbers
    }
    assert len(met) == 6


@pytest.mark.parametrize("number", sampled(range(48), HANDFUL))
def test_the_storage_of_a_scan_changes_no_map_of_other_voxels(
    number: int, written: Written, tmp_path: Path
) -> None:
    """Voxels of 2.5 mm are brought to those of the training, and the map back."""
    head = make_head("oblique", edge=2.5)
    found = segment(head.stored(*STORAGES[number]), tmp_path, frame=FRAMES[number % 3])
    assert_same(found.at(head.scan.affine), written(head).volume)


def segment_without_mask(head: Head, folder: Path) -> Map:
    tripq("segment", head.write(folder), "-o", folder, "--device", "cpu")
    return Map.read(folder / "dwi_label-lesion_probseg.nii.gz")


#: Larger than the receptive field: with all voxels near the edge, a map varies little.
LARGE = (23, 21, 22)


@pytest.fixture(scope="module")
def found_brain(tmp_path_factory: pytest.TempPathFactory) -> Map:
    return segment_without_mask(make_head("oblique", LARGE), tmp_path_factory.mktemp("brain"))


@pytest.mark.parametrize("number", sampled(range(48), HANDFUL))
def test_the_storage_of_a_scan_changes_no_brain_that_is_found(
    number: int, found_brain: Map, tmp_path: Path
) -> None:
    """Without a mask."""
    head, expected = make_head("oblique", LARGE), found_brain.volume
    assert 0.8 < np.count_nonzero(expected) / np.count_nonzero(head.brain) < 1.2
    found = segment_without_mask(head.stored(*STORAGES[number]), tmp_path).at(head.scan.affine)
    np.testing.assert_array_equal(found > 0, expected > 0)
    assert_same(found, expected)


@pytest.mark.parametrize("frame", FRAMES)
def test_a_wrong_frame_gives_another_map(frame: str, written: Written, tmp_path: Path) -> None:
    """So that the laws above are about something: the map does depend on the table."""
    head = make_head("oblique")
    scan = head.write(tmp_path, frame)
    for other in set(FRAMES) - {frame}:
        out = tmp_path / other
        mask = ("--mask", tmp_path / "mask.nii.gz")
        tripq("segment", scan, *mask, "--frame", other, "-o", out, "--device", "cpu")
        found = Map.read(out / "dwi_label-lesion_probseg.nii.gz").volume
        assert np.abs(found - written(head).volume).max() > 1000 * ROUNDING


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_volumes_and_the_signs_of_directions_change_no_map(
    seed: int, written: Written, tmp_path: Path
) -> None:
    """Both b0 volumes and both shells are mixed."""
    head = make_head()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(head.scan.b_values))
    signs = rng.choice([-1.0, 1.0], len(order))
    scan = replace(
        head.scan,
        data=head.scan.data[..., order],
        b_values=head.scan.b_values[order],
        directions=head.scan.directions[order] * signs[:, None],
    )
    found = segment(replace(head, scan=scan), tmp_path)
    assert_same(found.volume, written(head).volume)


# -- how the work is done ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "budget"),
    [
        # in parts as it is; with a small budget it takes minutes
        pytest.param("edges", None, marks=pytest.mark.exhaustive),
        *(("dense", None), ("fourier", 1_000_000), ("recoupled", 1_000_000), ("triton", None)),
        *(
            pytest.param(backend, budget, marks=pytest.mark.exhaustive)
            for backend, budget in (
                *(("dense", 1_000_000), ("fourier", None)),
                *(("recoupled", None), ("triton", 1_000_000)),
            )
        ),
    ],
)
def test_every_back_end_gives_the_map(
    backend: str, budget: int | None, written: Written, tmp_path: Path, monkeypatch
) -> None:
    """In one piece, and split by a budget of 1 MB; "triton" runs in plain torch on a CPU."""
    model = load_model(LesionCommands().included_weights())
    layers = [m for m in model.network.modules() if isinstance(m, PQTensorFieldLayer)]
    for layer in layers:
        layer.backend, layer.memory_budget = backend, budget
    assert len(layers) == 5
    monkeypatch.setattr(segmenting, "load_model", lambda path: model)
    head = make_head()
    assert_same(segment(head, tmp_path).volume, written(head).volume)


def test_any_split_of_memory_gives_the_map(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--memory` decides how large the blocks are, and with that how many."""
    head = make_head(shape=(26, 26, 64))
    split_blocks, counts = blocks.split_blocks, []

    def counted(*arguments):
        blocks = split_blocks(*arguments)
        counts.append(len(blocks))
        return blocks

    monkeypatch.setattr(blocks, "split_blocks", counted)
    expected = written(head).volume
    network = load_model(LesionCommands().included_weights()).network
    dwi = read_dwi(head.write(tmp_path), mask=tmp_path / "mask.nii.gz")
    least = least_voxels(network, dwi)
    for voxels in (least, least + 900):
        statistics = blocks.statistics_bytes_per_voxel(network) * len(dwi.b0)
        in_blocks = (voxels + 1) * bytes_per_voxel(network, 19)
        memory = PROGRAM_BYTES + dwi.signal.nbytes + statistics + in_blocks
        found = segment(head, tmp_path / str(voxels), "--memory", f"{memory / 1e3:.0f}kB")
        assert_same(found.volume, expected)
    assert counts[0] == 1
    assert sorted(set(counts), reverse=True) == counts[1:] + counts[:1]
    assert counts[1] > 3


def test_segmenting_goes_on_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset that was interrupted in its second scan ends with the same maps, bit by bit."""
    raw = tmp_path / "raw"
    for subject, linear in (("sub-01", "plain"), ("sub-02", "oblique"), ("sub-03", "plain")):
        make_head(linear).write(raw / subject / "dwi", name=f"{subject}_dwi.nii.gz")
        (raw / subject / "dwi/mask.nii.gz").unlink()
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tripq("segment-bids", raw, whole, "participant", "--device", "cpu")

    write_map = segmenting.write_map

    def interrupted(values, dwi, path):
        write_map(values, dwi, path)
        if "sub-02" in path.name:
            raise KeyboardInterrupt

    monkeypatch.setattr(segmenting, "write_map", interrupted)
    with pytest.raises(AssertionError, match="interrupted"):
        tripq("segment-bids", raw, parts, "participant", "--device", "cpu")
    assert not list(parts.rglob("sub-02*.*"))
    monkeypatch.setattr(segmenting, "write_map", write_map)
    tripq("segment-bids", raw, parts, "participant", "--device", "cpu")

    maps = sorted(path.relative_to(whole) for path in whole.rglob("*.nii.gz"))
    assert len(maps) == 6
    for path in maps:
        first, second = (nib.load(folder / path) for folder in (whole, parts))
        np.testing.assert_array_equal(first.affine, second.affine)
        np.testing.assert_array_equal(np.asarray(first.dataobj), np.asarray(second.dataobj))
        assert np.asarray(first.dataobj).any() or "mask" in path.name
