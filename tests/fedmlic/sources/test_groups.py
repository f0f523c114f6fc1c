import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmlic.sources.groups import (
    crossing,
    deal,
    deal_within,
    first_of_each,
    number_groups,
    owner_warnings,
    owners_whole,
)

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


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    nobody=st.integers(0, 9),
    shares=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_every_group_is_divided_and_keeps_a_training_image(sizes, nobody, shares, seed, data):
    groups = np.repeat(np.arange(-1, len(sizes)), [nobody, *sizes])
    ids = [f"i{place}" for place in range(len(groups))]
    fractions = dict(zip(("val", "test"), shares, strict=True))
    order = data.draw(st.permutations(range(len(ids))))

    splits = deal_within(["train"] * len(ids), groups, ids, fractions, seed, "test")
    again = deal_within(["train"] * len(ids), groups[order], [ids[i] for i in order], fractions, seed, "test")

    assert again == [splits[i] for i in order]
    assert set(range(len(sizes))) <= {g for g, s in zip(groups.tolist(), splits, strict=True) if s == "train"}
    for split, share in fractions.items():
        assert splits.count(split) <= share * len(ids) + 0.5 + 1e-9


def test_sites_are_all_trained_and_tested_on():
    groups = np.repeat(np.arange(5), 40)

    splits = np.array(deal_within(["train"] * 200, groups, [f"{i:03}" for i in range(200)], {"test": 0.1}, 1, "x"))

    assert [(splits[groups == group] == "test").sum() for group in range(5)] == [4] * 5
    given_splits = ["train", "test", "val"]
    assert deal_within(given_splits, np.zeros(3, int), list("abc"), {"val": 0.5}, 0, "x") == given_splits


def test_few_owners_are_divided_and_many_are_kept_whole():
    few, many = np.array([0, 1, -1]), np.arange(-1, 20)

    assert [owners_whole("auto", owners) for owners in (few, many)] == [False, True]
    assert [owners_whole(how, few) for how in ("owner", "image")] == [True, False]


def test_what_is_to_be_known_of_owners():
    owners = np.array([0, 0, 1, 2])
    names = ["Ward A", "Ward B", "ward a"]

    assert owner_warnings(names, owners, [], "auto") == ["owners 'Ward A', 'ward a' look alike and count as different"]
    found = owner_warnings(names, owners, ["train", "train", "train", "test"], "auto")
    assert "each of the 3 owners were divided" in found[1]
    assert "1 of 3 owners have no training image after the random split: 'ward a'" in found[2]
    assert owner_warnings(names[:2], owners[:3], ["train"] * 3, "image") == []
    assert owner_warnings([], np.array([-1]), ["train"], "auto") == []
