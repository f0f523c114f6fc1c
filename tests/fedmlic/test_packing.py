"""Packing is without loss, never longer than the numbers, and never unpacks more than was asked for."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedmlic.packing import DEFLATED, LISTED, RAW, SHUFFLED, pack, unpack


@given(arrays.arrays(np.float64, st.integers(0, 300), elements=st.floats(allow_nan=True, width=32)))
def test_what_comes_back_is_what_was_packed(numbers):
    form, data = pack(numbers)

    assert len(data) <= numbers.nbytes
    assert unpack(form, data, len(numbers), 8) == numbers.tobytes()


@given(st.lists(st.floats(), min_size=1, max_size=5), st.integers(100, 400), st.integers(0, 9))
def test_few_different_numbers_too(values, count, seed):
    numbers = np.random.default_rng(seed).choice(np.array(values), count)

    form, data = pack(numbers)

    assert len(data) < 3 * count
    assert unpack(form, data, count, 8) == numbers.tobytes()


@given(st.sampled_from([RAW, DEFLATED, SHUFFLED, LISTED, "pickle"]), st.binary(max_size=100), st.integers(0, 20))
def test_any_bytes_are_numbers_or_nothing(form, data, count):
    got = unpack(form, data, count, 8)

    assert got is None or len(got) == 8 * count


@pytest.mark.parametrize("other", [-1, 1])
def test_another_count_is_nothing(other):
    form, data = pack(np.zeros(100))

    assert form != RAW
    assert unpack(form, data, 100 + other, 8) is None


def test_the_shuffle_puts_bytes_of_equal_place_together():
    numbers = np.array([1.5, -2.0, 1e-300])
    by_hand = bytes(number.tobytes()[place] for place in range(8) for number in numbers)

    assert unpack(SHUFFLED, zlib.compress(by_hand), 3, 8) == numbers.tobytes()


def test_a_list_by_hand():
    listed = np.array([0.0, 2.5, -1.0])
    places = bytes([2, 0, 1, 1]) + bytes(4)

    packed = zlib.compress((3).to_bytes(4, "little") + listed.tobytes() + places)

    assert unpack(LISTED, packed, 4, 8) == np.array([-1.0, 0.0, 2.5, 2.5]).tobytes()
    assert unpack(LISTED, zlib.compress((2).to_bytes(4, "little") + listed[:2].tobytes() + places), 4, 8) is None
