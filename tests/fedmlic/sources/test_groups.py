import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmlic.sources.groups import crossing, deal, first_of_each, number_groups

names = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), max_size=40)


@given(names=st.lists(st.sampled_from(["", "x", "y", "z"]), max_size=20))
def test_numbers_are_places_in_the_alphabet(names):
    numbers, known = number_groups(names)

    assert known == sorted({name for name in names if name})
    assert [known[n] if n >= 0 else "" for n in numbers.tolist()] == names


@given(names=names, shares=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)), seed=st.integers(0, 9), data=st.data())
def test_groups_stay_whole_and_the_order_of_images_does_not_matter(names, shares, seed, data):
    fractions = {"test": shares[0], "val": shares[1]}
    splits = deal(["train"] * len(names), number_groups(names)[0], fractions, seed, "test")
    order = data.draw(st.permutations(range(len(names))))

    assert crossing(names, splits) == {}
    assert deal(["train"] * len(names), number_groups([names[i] for i in order])[0], fractions, seed, "test") == [
        splits[i] for i in order
    ]


def test_shares_are_of_all_training_images_and_other_splits_are_left_alone():
    names = [f"p{i:03d}" for i in range(220)]
    given_splits = ["train"] * 200 + ["test"] * 20

    splits = deal(given_splits, number_groups(names)[0], {"val": 0.1, "test": 0.25}, 3, "example")

    assert splits[200:] == ["test"] * 20
    assert [splits[:200].count(split) for split in ("train", "val", "test")] == [130, 20, 50]
    assert splits != deal(given_splits, number_groups(names)[0], {"val": 0.1, "test": 0.25}, 4, "example")


def test_nothing_to_deal():
    assert deal([], number_groups([])[0], {"val": 0.5}, 0, "none") == []
    assert deal(["test"], np.zeros(1, np.int64), {"val": 0.5}, 0, "none") == ["test"]


@given(names=names, sides=st.lists(st.sampled_from(["train", "val", "test"]), min_size=40, max_size=40))
def test_crossing_groups_are_found(names, sides):
    sides = sides[: len(names)]
    plain = {n: sorted({s for m, s in zip(names, sides, strict=True) if m == n}) for n in names}

    assert crossing(names, sides) == {n: s for n, s in plain.items() if len(s) > 1}


def test_first_of_each_and_blank_names():
    assert first_of_each(["a", "b", "a", "c", "b"]) == [True, True, False, True, False]
    assert crossing(["", ""], ["train", "test"]) == {}
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        crossing(["a", "b"], ["train"])
    assert number_groups([])[0].dtype == np.int64
