"""An encoder, and any output on top of it."""

from __future__ import annotations

import hashlib
from inspect import signature

import numpy as np
import pytest
import torch
from e3nn import o3

from tripq import PQGraph
from tripq.filters.radial import Radial
from tripq.networks.encoder import Encoder, VoxelNetwork
from tripq.tasks.lesions.segmenter import LesionSegmenter
from tripq.testing import assert_equivariant

SMALL = {"q_features": "4x0e + 2x2e", "p_features": "4x0e + 2x1o + 2x2e", "n_p_layers": 1}
Q = np.concatenate([np.zeros((1, 3)), np.eye(3), [[0.6, 0.8, 0]]])
GRAPH = PQGraph.from_grid(np.ones((3, 3, 3)), np.diag([2.0, 2, 2, 1]), Q, radius=3.6)
RADIALS = {"p_radial": Radial("gaussian", 2), "q_radial": Radial("bessel", 4, hidden=(3,))}

#: Of a segmenter of version 0.1: how many tensors, and the SHA-256 of their names and shapes.
STATE = (22, "eb93809969c07be3f5dbf0479fe34ae0676f230beac91ae167d49f47c7843523")


def arguments(network: type) -> dict[str, object]:
    return {name: p.default for name, p in signature(network).parameters.items()}


def test_an_option_of_the_encoder_is_one_of_each_network():
    ours = arguments(Encoder)
    assert arguments(LesionSegmenter) == {**ours, "normalize": "local"}
    assert arguments(VoxelNetwork) == {"irreps_out": "1x0e", **ours}
    given = {**ours, **SMALL, **RADIALS, "q_max": 1.5, "group": "O3"}
    given |= {"quadrature": "sum", "p_radius": 3.6, "b0_contrast": True}
    given |= {"normalize": "none", "filter": "tp", "selection": "tp1", "antipodal": False}
    assert not [name for name in ours if given[name] == ours[name]]
    for network in (Encoder, VoxelNetwork, LesionSegmenter):
        built = network(**given)
        assert {name: getattr(built, name) for name in given} == given


@pytest.mark.parametrize("group", ["SO3", "O3"])
@pytest.mark.parametrize("irreps", [None, "6x0e", "1x1o", "1x0e + 1x2e"])
def test_features_and_outputs_turn_with_the_scan(irreps, group):
    torch.manual_seed(1)
    options = {**SMALL, **RADIALS, "group": group}
    network = Encoder(**options) if irreps is None else VoxelNetwork(irreps, **options)
    assert_equivariant(network, seeds=2)


def test_the_output_is_linear_in_the_features():
    torch.manual_seed(0)
    network = VoxelNetwork("2x0e + 1x1o", **SMALL).eval()
    encoder = Encoder(**SMALL).eval()
    encoder.load_state_dict(
        {key: value for key, value in network.state_dict().items() if key.startswith("blocks")}
    )
    signal = torch.rand(27, len(Q))
    assert network.head.irreps_in == encoder.irreps_out
    assert network.irreps_out == o3.Irreps("2x0e + 1x1o")
    features = encoder(signal, GRAPH)
    assert features.shape == (27, encoder.irreps_out.dim)
    assert torch.equal(network.head(features, GRAPH), network(signal, GRAPH))


def test_a_segmenter_is_a_voxel_network_of_one_scalar():
    torch.manual_seed(0)
    segmenter = LesionSegmenter(**SMALL).eval()
    network = VoxelNetwork("1x0e", **SMALL, normalize="local").eval()
    network.load_state_dict(segmenter.state_dict())
    signal = torch.rand(27, len(Q))
    assert torch.equal(segmenter(signal, GRAPH), network(signal, GRAPH)[:, 0])


def test_a_segmenter_has_the_weights_it_always_had():
    """Names, shapes and order, so that files and seeds give the networks that they gave before."""
    network = LesionSegmenter(
        p_radius=3.6, normalize="batch", p_radial=Radial("gaussian", 3), quadrature="sum"
    )
    state = network.state_dict()
    listed = "\n".join(f"{name} {tuple(value.shape)}" for name, value in state.items())
    assert len(state) == STATE[0]
    assert hashlib.sha256(listed.encode()).hexdigest() == STATE[1]


def test_radial_functions_reach_every_layer():
    network = VoxelNetwork("1x0e", **SMALL, **RADIALS)
    first, *others = [block.layer for block in network.blocks]
    assert [f.radial for f in first.filters] == [(1, 1, 4)]
    for layer in (*others, network.head):
        assert [f.radial for f in layer.filters] == [(2, 1, 1)]


def test_what_no_path_leads_to_is_refused():
    with (
        pytest.warns(UserWarning, match="no path of this layer leads to 1x6e"),
        pytest.raises(ValueError, match="no path leads to 1x6e of 1x0e"),
    ):
        VoxelNetwork("1x0e + 1x6e", **SMALL)


def test_a_network_is_bound_as_a_layer_is():
    network = VoxelNetwork("1x0e", **SMALL).eval()
    signal = torch.rand(27, len(Q))
    assert torch.equal(network.bind(GRAPH)(signal), network(signal, GRAPH))
