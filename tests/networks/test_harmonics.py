"""Harmonics alone: exact for functions of their orders, and equivariant."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tasks.signal.conftest import fibres
from tripq import PQGraph
from tripq.networks.blocks import predict_blocks
from tripq.networks.harmonics import HarmonicFit
from tripq.tasks.signal.network import SignalPredictor
from tripq.testing import assert_equivariant


def test_a_quadratic_function_is_continued_exactly() -> None:
    rng = np.random.default_rng(0)
    shown, wanted = (
        q / np.linalg.norm(q, axis=1, keepdims=True) for q in rng.normal(size=(2, 9, 3))
    )
    form = rng.uniform(0, 0.3, (8, 3, 3))
    graph = PQGraph.from_grid(np.ones((2, 2, 2)), np.eye(4), shown, 0.0, q_out=wanted)
    signal, known = (np.einsum("vij,qi,qj->vq", form, q, q) for q in (shown, wanted))
    found = HarmonicFit(order=2, smoothing=1e-12).double()(torch.from_numpy(signal), graph)
    np.testing.assert_allclose(found, known, atol=1e-8)


def test_an_untrained_predictor_is_the_fit() -> None:
    dwi, q = fibres(0, (12, 7)).dwi, fibres(0, (20, 15)).dwi.q
    arguments = {"order": 6, "smoothing": 0.01}
    one, other = (
        predict_blocks(kind(**arguments).eval(), dwi, q_out=q)  # type: ignore[arg-type]
        for kind in (HarmonicFit, SignalPredictor)
    )
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_signal_turns_with_the_head() -> None:
    assert_equivariant(HarmonicFit(), radius=1.0)


def test_numbers_out_of_range_are_refused() -> None:
    for arguments in ({"order": 3}, {"order": -2}, {"smoothing": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            HarmonicFit(**arguments)  # type: ignore[arg-type]
