"""Chunks of work: every item once, as many at a time as fit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tripq.infra.chunks import chunks


@given(number=st.integers(0, 40), size=st.integers(0, 9), budget=st.integers(0, 99))
def test_chunks_hold_every_item_once_and_as_many_as_fit(number, size, budget):
    parts = chunks(number, size, budget)
    assert [i for part in parts for i in range(number)[part]] == list(range(number))
    lengths = [part.stop - part.start for part in parts]
    assert all(n == 1 or n * max(size, 1) <= budget for n in lengths)
    assert all(n == lengths[0] for n in lengths[:-1])
    assert len(parts) < 2 or (lengths[0] + 1) * max(size, 1) > budget
