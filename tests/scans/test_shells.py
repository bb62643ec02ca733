from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripq.scans import SHELL_TOLERANCE, find_shells

b_values = st.lists(st.floats(0, 10_000), max_size=60).map(np.array)


@given(b_values, st.floats(0, 500))
def test_shells_are_cut_where_the_gap_is_wide(values, tolerance):
    shells = find_shells(values, tolerance)
    members = [index for shell in shells for index in shell.indices]
    assert sorted(members) == list(np.flatnonzero(values > 0))
    for shell in shells:
        assert list(shell.indices) == sorted(shell.indices)
        assert np.all(np.diff(np.sort(values[shell.indices])) <= tolerance)
        assert shell.b_value == np.median(values[shell.indices])
    for lower, upper in pairwise(shells):
        assert values[upper.indices].min() - values[lower.indices].max() > tolerance


@given(st.permutations([0, 0, 999, 1000, 1001, 1995, 2000, 2005, 2985, 3010]))
def test_rounding_does_not_split_a_shell(values):
    shells = find_shells(values)
    assert [len(shell) for shell in shells] == [3, 3, 2]
    assert [shell.b_value for shell in shells] == [1000, 2000, 2997.5]


@pytest.mark.parametrize(("gap", "count"), [(SHELL_TOLERANCE, 1), (SHELL_TOLERANCE + 1, 2)])
def test_tolerance_is_the_widest_gap_within_a_shell(gap, count):
    assert len(find_shells([1000, 1000 + gap])) == count


def test_b_values_are_computed_with_in_float64():
    (shell,) = find_shells(np.array([1999, 2000], dtype=np.float16))
    assert shell.b_value == 1999.5, "float16 would round it to 2000"


def test_no_shell_without_diffusion_weighting():
    assert find_shells([0, 0]) == ()
    assert find_shells([]) == ()
