"""The selection rules, counted by brute force over all tuples of orders."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from importlib.util import find_spec
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripq.so3.paths import Caps, Channels, Path, filter_orders, parse_filter, select_paths

orders = st.integers(0, 3)
caps = st.builds(Caps, *[st.none() | orders] * 3)


def triangle(a, b, c):
    return abs(a - b) <= c <= a + b


def allowed(kind, selection, l_in, l_out, l_f, l_p, l_q):
    """The inequalities of the paper, one by one."""
    if not triangle(l_in, l_out, l_f):
        return False
    if kind == "tp":
        near = abs(l_f - l_p) <= 1 and (selection == "paper" or abs(l_f - l_q) <= 1)
        return (near or selection == "all") and triangle(l_p, l_q, l_f)
    return (l_p, l_q) == ((0, l_f) if kind == "q" else (l_f, 0))


def within(cap, order):
    return cap is None or order <= cap


@pytest.mark.parametrize("kind", ["tp", "diff", "p", "q"])
@given(l_in=orders, l_out=orders, selection=st.sampled_from(("paper", "tp1", "all")), caps=caps)
def test_paths_are_all_tuples_of_orders_that_the_rules_allow(kind, l_in, l_out, selection, caps):
    highest = 2 * (l_in + l_out) + 5  # l_q <= l_f + l_p, and l_p <= l_f + 1 or lmax_p <= 3
    expected = {
        (l_f, l_p, l_q)
        for l_f, l_p, l_q in product(range(highest), repeat=3)
        if allowed(kind, selection, l_in, l_out, l_f, l_p, l_q)
        and within(caps.lmax_filter, l_f)
        and within(caps.lmax_p, l_p)
        and within(caps.lmax_q, l_q)
    }
    if kind == "tp" and selection == "all" and caps.lmax_p is None:
        with pytest.raises(ValueError, match="needs lmax_p"):
            list(filter_orders(kind, l_in, l_out, selection, caps))
        return
    found = list(filter_orders(kind, l_in, l_out, selection, caps))
    assert set(found) == expected
    assert len(found) == len(expected), "a path occurs once"


@pytest.mark.parametrize("kind", ["tp", "diff", "p", "q"])
@pytest.mark.parametrize("antipodal", [False, True])
def test_parity_and_antipodal_symmetry_only_leave_paths_out(kind, antipodal):
    channels = tuple(
        Channels(l, parity, tuple(range(2 * l + 1))) for l in range(3) for parity in (1, -1)
    )
    every = {
        Path(i.l, o.l, l_f, l_p, l_q, kind, i.parity, o.parity)
        for i, o in product(channels, repeat=2)
        for l_f, l_p, l_q in filter_orders(kind, i.l, o.l)
    }
    even = {path for path in every if not (antipodal and path.l_q % 2)}
    matching = {
        path
        for path in even
        if path.parity_in * (-1) ** path.l_p * (-1) ** path.l_q == path.parity_out
    }

    def selected(group):
        return select_paths(kind, channels, channels, group=group, antipodal=antipodal)

    assert set(selected("SO3")) == even
    assert set(selected("O3")) == matching
    assert len(selected("O3")) == len(matching)


def test_selection_of_the_authors_code_is_part_of_that_of_the_paper():
    paper = set(filter_orders("tp", 2, 2, "paper"))
    tp1 = set(filter_orders("tp", 2, 2, "tp1"))
    assert tp1 < paper
    assert paper - tp1 == {path for path in paper if abs(path[0] - path[2]) > 1}


def test_numbers_of_paths_counted_by_hand():
    # l_f = 0: (l_p, l_q) = (0, 0), (1, 1).  l_f = 1: (0, 1), (1, 0), (1, 1), (1, 2), (2, 1),
    # (2, 2), (2, 3).
    assert len(list(filter_orders("tp", 0, 0))) == 2
    assert len(list(filter_orders("tp", 0, 1))) == 7
    assert len(list(filter_orders("tp", 0, 1, "tp1"))) == 6


@pytest.mark.parametrize("kind", ["tp", "diff", "p", "q"])
def test_inner_and_outer_orders_are_those_that_the_kind_has(kind):
    channels = tuple(Channels(l, 1, tuple(range(2 * l + 1))) for l in range(3))
    for path in select_paths(kind, channels, channels):
        assert triangle(path.inner, path.outer, path.l_filter)
        assert (path.inner, path.outer) == {
            "tp": (path.l_q, path.l_p),
            "diff": (path.l_filter, 0),
            "p": (0, path.l_p),
            "q": (path.l_q, 0),
        }[kind]


def test_a_path_is_frozen_hashable_and_equal_by_value():
    path = Path(0, 1, 1, 1, 0)
    assert path == Path(0, 1, 1, 1, 0)
    assert len({path, Path(0, 1, 1, 1, 0), replace(path, l_q=2)}) == 2
    with pytest.raises(FrozenInstanceError):
        path.l_in = 2


def test_the_module_runs_without_torch():
    program = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
sys.modules.update(torch=None, numpy=None, e3nn=None)      # importing one of them now fails
spec = spec_from_file_location("paths", sys.argv[1])
paths = sys.modules["paths"] = module_from_spec(spec)
spec.loader.exec_module(paths)
print(len(list(paths.filter_orders("tp", 0, 1))))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, find_spec("tripq.so3.paths").origin],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "7\n"


def test_filters_can_be_summed():
    assert parse_filter("tp") == ("tp",)
    assert parse_filter(" tp+ p +q") == ("tp", "p", "q")


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        ("pq", "unknown filter 'pq' in 'pq': a filter is one of tp, diff, p, q"),
        ("", "unknown filter ''"),
        ("tp +", "unknown filter ''"),
        ("tp + p + tp", "names a kind twice"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(filter, message):
    with pytest.raises(ValueError, match=message):
        parse_filter(filter)


@pytest.mark.parametrize("name", ["lmax_p", "lmax_q", "lmax_filter"])
def test_a_negative_cap_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 0"):
        Caps(**{name: -1})


@pytest.mark.parametrize("l", range(4))
@pytest.mark.parametrize("number", [0, 1, 3, 8])
def test_channels_count_themselves(l, number):
    assert Channels(l, 1, tuple(range(number * (2 * l + 1)))).mul == number
