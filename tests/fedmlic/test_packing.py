"""Packing is without loss, never longer than the numbers, and never unpacks more than was asked for."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedmlic.packing import DEFLATED, LISTED, PIECE, RAW, SHUFFLED, pack, unpack


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
    places = bytes([2, 0, 1, 1] * 3) + bytes(12)

    packed = zlib.compress((3).to_bytes(4, "little") + listed.tobytes() + places)

    assert unpack(LISTED, packed, 12, 8) == np.array([-1.0, 0.0, 2.5, 2.5] * 3).tobytes()
    assert unpack(LISTED, zlib.compress((2).to_bytes(4, "little") + listed[:2].tobytes() + places), 12, 8) is None


def test_numbers_of_more_values_than_a_list_may_have_stand_for_themselves():
    numbers = np.array([1.5, -2.0, 1e-300], np.float64)
    packed = zlib.compress(bytes(4) + bytes(number.tobytes()[place] for place in range(8) for number in numbers))

    assert unpack(LISTED, packed, 3, 8) == numbers.tobytes()


@pytest.mark.parametrize("wrong", ["a list of more", "a place beyond it", "cut off", "more behind"])
def test_lists_that_are_not_what_they_say_are_nothing(wrong):
    count, place = 8, 1
    num_listed = 3 if wrong == "a list of more" else 2
    places = bytes([2 if wrong == "a place beyond it" else place] * count) + bytes(count)
    data = num_listed.to_bytes(4, "little") + bytes(4 * num_listed) + places
    data = {"cut off": data[:-1], "more behind": data + b"m"}.get(wrong, data)

    assert unpack(LISTED, zlib.compress(data), count, 4) is None


def test_every_piece_has_a_list_of_its_own():
    """As a network's rounded change has: 255 values of every tensor, far more of all, and statistics that are whole."""
    rng = np.random.default_rng(0)
    scales = np.repeat(rng.random(200), 4000)
    numbers = np.concatenate([rng.standard_normal(PIECE), rng.integers(-127, 128, 800_000) * scales]).astype("<f4")
    tail = len(numbers) - PIECE

    form, data = pack(numbers)

    assert len(np.unique(numbers)) > PIECE
    assert form == LISTED
    assert len(data) < 4 * PIECE + 2.5 * tail
    assert unpack(form, data, len(numbers), 4) == numbers.tobytes()
