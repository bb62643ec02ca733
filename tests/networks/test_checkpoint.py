"""Networks come back from files as they were, and bad files are told apart from good ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.trust.bounds import bounded
from tripq import PQGraph
from tripq.filters.radial import Radial
from tripq.networks.checkpoint import CheckpointError, load_network, read_notes, save_network
from tripq.networks.conv import ConvSegmenter
from tripq.networks.encoder import Encoder, VoxelNetwork
from tripq.networks.paper import PaperSegmenter
from tripq.networks.registry import register_network
from tripq.nn.batch_norm import Normalization
from tripq.tasks.lesions.segmenter import LesionSegmenter

Q = np.concatenate([np.zeros((1, 3)), np.eye(3)])
GRAPH = PQGraph.from_grid(np.ones((4, 4, 4)), np.diag([2.0, 2, 2, 1]), Q, radius=5.0)


@pytest.mark.parametrize(
    "network",
    [
        LesionSegmenter(
            p_radius=2.5, q_features="3x0e+2x2e", p_features="2x0e+1x1o", n_p_layers=1, q_max=1.5
        ),
        PaperSegmenter(p_radius=3.0, q_reduction="mean", q_max=1.2),
        Encoder(q_features="3x0e+2x2e", p_features="2x0e+1x1o", n_p_layers=1, group="O3"),
        VoxelNetwork(
            "2x1o",
            q_features="3x0e+2x2e",
            p_features="2x0e+1x1o",
            n_p_layers=1,
            p_radial=Radial("bessel", 2, learnable=True),
            q_radial=Radial(number=4, hidden=(5, 3)),
        ),
        ConvSegmenter(4, widths=(3, 2), kernel_size=5),
    ],
    ids=lambda network: type(network).__name__,
)
def test_a_network_comes_back_as_it_was(network: nn.Module, tmp_path: Path) -> None:
    save_network(network, tmp_path / "network.safetensors", {"trained on": "nothing"})
    loaded = load_network(tmp_path / "network.safetensors")

    assert repr(loaded) == repr(network)
    assert read_notes(tmp_path / "network.safetensors")["trained on"] == "nothing"
    signal = torch.rand(64, 4)
    torch.testing.assert_close(loaded(signal, GRAPH), network.eval()(signal, GRAPH), rtol=0, atol=0)


def test_equal_networks_give_equal_files(tmp_path: Path) -> None:
    """A map names its weights by the SHA-256 of their file."""
    network = LesionSegmenter(p_radius=2.5, n_p_layers=1)
    notes = {f"note {i}, älter": str(i) for i in range(9)}
    files = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for file in files:
        save_network(network, file, dict(reversed(notes.items())) if file == files[1] else notes)
    assert len({file.read_bytes() for file in files}) == 1
    assert notes.items() <= read_notes(files[0]).items()
    for name, values in load_file(files[0]).items():
        assert torch.equal(values, network.state_dict()[name])


@pytest.mark.parametrize(
    ("normalize", "written"),
    [
        ("batch", {}),
        ("batch", {"batch_norm": True}),
        ("none", {"batch_norm": False}),
    ],
)
def test_a_file_from_before_an_argument_is_the_network_that_was_saved(
    normalize: Normalization, written: dict[str, object], tmp_path: Path
) -> None:
    """Of before other radial functions, integrals, O(3) in every layer and instance norms."""
    path = tmp_path / "net.safetensors"
    older = {"p_radial": Radial("gaussian", 3), "q_radial": Radial("gaussian", 3)}
    torch.manual_seed(0)
    network = LesionSegmenter(
        q_features="4x0e + 2x2e",
        p_features="4x0e",
        n_p_layers=1,
        **older,
        quadrature="sum",
        normalize=normalize,
    ).eval()
    save_network(network, path)
    arguments = json.loads(read_notes(path)["arguments"])
    for name in (*older, "quadrature", "group", "normalize"):
        del arguments[name]
    arguments |= written
    save_file(
        load_file(path), path, {"network": "LesionSegmenter", "arguments": json.dumps(arguments)}
    )
    found = load_network(path)
    graph = PQGraph.from_grid(np.ones((4, 4, 4)), np.diag([2.0, 2, 2, 1]), np.eye(3), 3.0)
    signal = torch.rand(64, 3)
    assert (found.p_radial, found.quadrature) == (older["p_radial"], "sum")
    assert found.normalize == normalize
    assert found(signal, graph).equal(network(signal, graph))


def test_outputs_of_a_size_that_no_file_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    metadata = {"network": "VoxelNetwork", "arguments": '{"irreps_out": "1000000000x0e"}'}
    save_file({"head.bias": torch.zeros(1)}, path, metadata)
    with (
        bounded(20, 50, with_torch=True),
        pytest.raises(CheckpointError, match=r"irreps_out = .*more features than there are"),
    ):
        load_network(path)


def test_only_known_networks_are_saved(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match="a Linear cannot be saved, only ConvSegmenter, Encoder, FibreNetwork, Les",
    ):
        save_network(nn.Linear(1, 1), tmp_path / "network.safetensors")


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "network"),
        ({"network": "Other", "arguments": "{}"}, "'Other' is unknown"),
        ({"network": "ConvSegmenter", "arguments": "{"}, "property name"),
        ({"network": "ConvSegmenter", "arguments": '{"depth": 3}'}, "depth"),
        (
            {"network": "ConvSegmenter", "arguments": '{"n_directions": 4}'},
            r"layers\.0\.bias is missing",
        ),
    ],
)
def test_another_file_is_refused(metadata: dict[str, str], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata)
    with pytest.raises(
        CheckpointError, match=rf"other\.safetensors: not a network of tripq.*{reason}"
    ):
        load_network(path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    with pytest.raises(CheckpointError, match=r"network\.safetensors: no such file"):
        load_network(path)
    save_network(ConvSegmenter(4, widths=(2,)), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"network\.safetensors: not a complete"):
        load_network(path)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        OSError(12, "Cannot allocate memory"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_not_the_fault_of_the_file(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path) -> None:
        raise error

    path = tiny(tmp_path / "net.safetensors")
    monkeypatch.setattr("tripq.networks.checkpoint.load_file", load)
    with pytest.raises(MemoryError, match=r"net\.safetensors: out of memory while its weights"):
        load_network(path)


def test_only_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("pipe", "zero", "folder"):
        reason = rf"{name}\.safetensors: cannot be read: a .*, not a file"
        with bounded(5, 10), pytest.raises(CheckpointError, match=reason):
            load_network(tmp_path / f"{name}.safetensors")


def tiny(path: Path, **notes: str) -> Path:
    network = LesionSegmenter(
        p_radius=2.9, q_features="2x0e+1x2e", p_features="2x0e", n_p_layers=0, q_max=2.0
    )
    save_network(network, path, notes)
    return path


@pytest.mark.parametrize(
    ("argument", "value", "reason"),
    [
        ("q_features", "1000000000x0e", "more features than there are weights"),
        (
            "q_features",
            "12x0e+1x2e",
            r"the tensor blocks\.0\..* is \(\d+,\) of torch.float32, not \(\d+,\)",
        ),
        ("q_features", "1x1000e", "orders go up to 11"),
        ("q_features", 5, "the argument q_features is 5"),
        ("p_features", "1x0e+" * 300, "the argument p_features is '1x0e"),
        ("n_p_layers", 10**9, "n_p_layers is 1000000000"),
        ("n_p_layers", 20, r"the tensor blocks\.1\..* is missing"),
        ("n_p_layers", True, "the argument n_p_layers is True"),
        ("p_radius", 1e9, "a radius of 1e.09 mm spans 5e.08 voxels"),
        ("p_radius", float("nan"), "arguments: not valid JSON: NaN is not a number"),
        ("batch_norm", "no", "LesionSegmenter has no argument 'batch_norm'"),
        ("normalize", True, "the argument normalize is True"),
        ("normalize", "no", "normalize must be one of local, scan, batch, none, not 'no'"),
        ("filter", ["tp"], "the argument filter is"),
        ("p_radial", {"number": 10**12}, "p_radial: more radial functions and hidden units than"),
        ("q_radial", {"hidden": [10**6] * 9}, "q_radial: more radial functions and hidden units"),
        ("q_radial", {"number": 0}, "at least one radial function is needed"),
        ("q_radial", {"kind": "square"}, "unknown radial functions 'square'"),
        ("q_radial", {"kind": 3}, "the argument q_radial is"),
        ("q_radial", {"size": 3}, "the argument q_radial is"),
        ("q_radial", "gaussian", "the argument q_radial is"),
        ("q_radial", 3, "the argument q_radial is"),
        ("depth", 3, "LesionSegmenter has no argument 'depth'"),
    ],
)
def test_sizes_that_the_tensors_do_not_have_are_refused_at_once(
    argument: str, value: object, reason: str, tmp_path: Path
) -> None:
    path = tiny(tmp_path / "net.safetensors")
    arguments = {**json.loads(read_notes(path)["arguments"]), argument: value}
    metadata = {"network": "LesionSegmenter", "arguments": json.dumps(arguments)}
    save_file(load_file(path), path, metadata)
    with (
        bounded(20, 50, with_torch=True),
        pytest.raises(
            CheckpointError, match=rf"net\.safetensors: not a network of tripq.*{reason}"
        ),
    ):
        load_network(path)


def test_convolutions_as_wide_as_a_stranger_says_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    wide = {"n_directions": 10**5, "widths": [10**5] * 9, "kernel_size": 9}
    metadata = {"network": "ConvSegmenter", "arguments": json.dumps(wide)}
    save_file({"layers.0.bias": torch.zeros(10**5)}, path, metadata)
    with bounded(20, 50, with_torch=True), pytest.raises(CheckpointError, match="is missing"):
        load_network(path)


class Counted(nn.Module):
    """A network whose constructor needs values, which the meta device does not have."""

    def __init__(self, *, size: int = 2) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.zeros(int(torch.ones(size).sum())))


def test_a_network_that_needs_values_to_be_built_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tripq.networks.registry._registered", {})
    save_network(register_network(Counted)(), tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="Counted cannot be built on the meta device"):
        load_network(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors: tensors.popitem(), "is missing"),
        (
            lambda tensors: tensors.update(more=torch.zeros(1)),
            "the tensor more is not part of this network",
        ),
        (
            lambda tensors: tensors.update(bias=torch.zeros(2)),
            r"is \(2,\) of torch.float32, not \(1,\)",
        ),
        (lambda tensors: tensors.update(bias=torch.zeros(1).double()), "of torch.float64, not"),
        (lambda tensors: tensors.update(bias=torch.zeros(1) / 0), "values that are not finite"),
    ],
)
def test_tampered_tensors_are_refused(change, reason: str, tmp_path: Path) -> None:
    path = tiny(tmp_path / "net.safetensors")
    tensors, metadata = load_file(path), read_notes(path)
    tensors["bias"] = tensors.pop("head.bias")
    change(tensors)
    if "bias" in tensors:
        tensors["head.bias"] = tensors.pop("bias")
    save_file(tensors, path, metadata)
    with pytest.raises(
        CheckpointError, match=rf"net\.safetensors: not a network of tripq.*{reason}"
    ):
        load_network(path)


def test_a_network_that_mirrors_in_its_first_layer_only_is_refused(tmp_path: Path) -> None:
    """Earlier versions gave the group O(3) to the first layer, and SO(3) to the others."""
    path = tmp_path / "mirror.safetensors"
    features = {"q_features": "2x0e+1x2e", "p_features": "2x0e+1x1o", "n_p_layers": 2}
    save_network(LesionSegmenter(**features, group="SO3"), path)
    notes = read_notes(path)
    notes["arguments"] = notes["arguments"].replace("SO3", "O3")
    save_file(load_file(path), path, notes)
    with pytest.raises(CheckpointError, match=r'only its first layer has group="O3".* Train it'):
        load_network(path)
    save_network(LesionSegmenter(**features, group="O3"), path)
    assert load_network(path).group == "O3"


def test_another_version_is_named_where_a_file_does_not_fit(tmp_path: Path) -> None:
    path = tiny(tmp_path / "net.safetensors", tripq="9.9")
    assert isinstance(load_network(path), LesionSegmenter)
    metadata = {**read_notes(path), "arguments": '{"depth": 3}'}
    save_file(load_file(path), path, metadata)
    with pytest.raises(CheckpointError, match=r"written by tripq 9\.9; this is "):
        load_network(path)


class Payload:
    """Leaves a file where a pickle of it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_is_not_loaded(zipped: bool, tmp_path: Path) -> None:
    path, traces = tmp_path / "net.safetensors", tmp_path / "traces"
    content = {"state_dict": {}, "more": Payload(traces)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"net\.safetensors: a file of torch\.save, which can"
    ):
        load_network(path)
    assert not traces.exists()
    torch.load(path.rename(tmp_path / "net.ckpt"), weights_only=False)
    assert traces.exists()  # so it was one


def test_endless_notes_are_refused(tmp_path: Path) -> None:
    path = tiny(tmp_path / "net.safetensors", caution="x" * 2_000_000)
    with pytest.raises(CheckpointError, match=r"2,000,\d\d\d characters of notes"):
        read_notes(path)
