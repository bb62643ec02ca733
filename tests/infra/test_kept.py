"""What is made once for its owner, and goes with it."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tripq.infra.kept import keep, kept_with_owner, kept_with_owners


class Owner:
    pass


class Made:
    def __init__(self, *args: int) -> None:
        self.args = args
        self.tensor = torch.ones(1)


@kept_with_owner
def made(owner: Owner, *args: int) -> Made:
    return Made(*args)


def test_each_owner_has_one_for_each_set_of_arguments():
    first, second = Owner(), Owner()
    assert made(first, 1) is made(first, 1)
    assert made(first, 1) is not made(first, 2)
    assert made(first, 1) is not made(second, 1)
    assert made(first, 2).args == (2,)


def test_it_goes_with_its_owner():
    owner = Owner()
    kept = weakref.ref(made(owner, 1))
    assert kept() is not None
    del owner
    gc.collect()
    assert kept() is None


@kept_with_owners
def made_for_two(owner: Owner, other: Owner, *args: int) -> Made:
    return Made(*args)


def test_two_owners_have_one_for_each_set_of_arguments():
    first, second = Owner(), Owner()
    assert made_for_two(first, second, 1) is made_for_two(first, second, 1)
    assert made_for_two(first, second, 1) is not made_for_two(first, second, 2)
    assert made_for_two(first, second, 1) is not made_for_two(second, first, 1)


@pytest.mark.parametrize("gone", [0, 1])
def test_it_goes_with_either_of_two_owners(gone):
    owners = [Owner(), Owner()]
    kept = weakref.ref(made_for_two(*owners, 1))
    assert kept() is not None
    del owners[gone]
    gc.collect()
    assert kept() is None


def test_what_inference_made_serves_training():
    owner = Owner()
    with torch.inference_mode():
        made(owner)
    assert not made(owner).tensor.is_inference()


def test_what_a_tracer_made_has_numbers():
    owner = Owner()
    with FakeTensorMode():
        made(owner)
    assert made(owner).tensor.tolist() == [1.0]


def test_what_has_a_key_is_kept_under_it():
    first, second = Owner(), Owner()
    value = keep(first, ("a", 1), Made)
    assert keep(first, ("a", 1), Made) is value
    assert keep(first, ("a", 2), Made) is not value
    assert keep(second, ("a", 1), Made) is not value
    assert keep(first, None, Made) is not keep(first, None, Made), "nothing without a key"


def test_what_autocast_made_is_not_rounded():
    owner, x = Owner(), torch.full((1, 1), 1 + 2.0**-20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert keep(owner, "product", lambda: x @ torch.ones(1, 1)).equal(x)
