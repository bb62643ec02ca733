from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from tripq.simulate import (
    Anatomy,
    Artefacts,
    Constants,
    GradientTable,
    Randomisation,
    SimulationError,
    simulate_scan,
)


def drawn(randomisation: Randomisation, n: int = 200) -> list:  # type: ignore[type-arg]
    return [randomisation.draw(np.random.default_rng(seed)) for seed in range(n)]


def test_a_range_of_everything_that_could_vary() -> None:
    names = {field.name for field in fields(Randomisation)}
    varied = {f.name for f in (*fields(Constants), *fields(Artefacts))} - {"seed"}
    assert varied <= names
    of_heads = {"heterogeneity", "gain_sd", "gain_scale", "tissue_s0"}
    assert names - varied == {"frequency", "snr"} | of_heads


def test_nothing_random_is_the_default_scan(anatomy: Anatomy, table: GradientTable) -> None:
    conditions = Randomisation.none().draw(np.random.default_rng(0))
    plain = simulate_scan(anatomy, table, 5)
    same = simulate_scan(anatomy, table, 5, **vars(conditions))
    for name in ("signal", "b0", "mask", "affine"):
        assert getattr(plain.dwi, name).tobytes() == getattr(same.dwi, name).tobytes()


def test_values_fill_their_ranges() -> None:
    randomisation = Randomisation()
    conditions = drawn(randomisation)
    snr = np.array([c.snr for c in conditions])
    assert 8 <= snr.min() < 9
    assert 36 < snr.max() <= 40
    assert np.median(snr) == pytest.approx(np.sqrt(8 * 40), rel=0.15)
    for field in fields(Constants):
        values = np.array([getattr(c.constants, field.name) for c in conditions])
        low, high = getattr(randomisation, field.name)
        place = (values - low) / (high - low)
        assert 0 <= place.min() < 0.05
        assert 0.95 < place.max() <= 1
    assert {c.artefacts.coils for c in conditions} == set(range(1, 9))
    assert {c.artefacts.phase_axis for c in conditions} == {0, 1}
    assert len({c.artefacts.seed for c in conditions}) == len(conditions)


def test_artefacts_are_as_frequent_as_asked() -> None:
    often, always = (drawn(replace(Randomisation(), frequency=f)) for f in (0.3, 1.0))
    for name in ("ghost", "eddy", "distortion", "blur", "lost"):
        share = np.mean([getattr(c.artefacts, name) > 0 for c in often])
        assert share == pytest.approx(0.3, abs=0.12)
        assert all(getattr(c.artefacts, name) > 0 for c in always)
    assert not any(c.artefacts.ghost for c in drawn(replace(Randomisation(), frequency=0.0), 20))


def test_a_range_leaves_the_others_alone() -> None:
    one, two = (
        r.draw(np.random.default_rng(3))
        for r in (Randomisation(), replace(Randomisation(), blur=(0.0, 0.0)))
    )
    assert replace(one.artefacts, blur=0.0) == replace(two.artefacts, blur=0.0)
    assert (one.snr, one.constants) == (two.snr, two.constants)


def test_what_was_drawn_can_be_written_and_used_again() -> None:
    conditions = Randomisation().draw(np.random.default_rng(3))
    described = json.loads(json.dumps(conditions.described()))
    assert described == conditions.described()
    assert Artefacts(**described["artefacts"]) == conditions.artefacts
    assert described["snr"] == conditions.snr


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ghost": (0.2, 0.1)}, r"ghost=\(0\.2, 0\.1\) must be a lowest and a highest value"),
        ({"snr": (0.0, 20.0)}, "snr=.* must be above 0"),
        ({"frequency": 2.0}, "frequency=2"),
        ({"kept": (0.0, 1.0)}, "kept=0 must be between"),
    ],
)
def test_ranges_that_make_no_sense_are_named(values: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(SimulationError, match=message):
        replace(Randomisation(), **values)
