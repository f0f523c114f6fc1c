import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmlic.dataset import Objects, Table
from fedmlic.errors import InputError


def objects(rows, num_labels=3):
    """Objects whose box and area carry their own number."""
    number = np.arange(len(rows))
    box = np.repeat(number[:, None], 4, axis=1).astype(np.float32)
    return Objects(np.array(rows, np.int64), (number % num_labels).astype(np.int16), box, number.astype(np.float32))


def table(**changes):
    fields = {
        "image_ids": ["a", "b", "c"],
        "splits": ["train", "val", "test"],
        "labels": np.zeros((3, 3), np.int8),
        "owners": np.array([0, -1, 1]),
    }
    return Table(**{**fields, **changes})


@given(st.lists(st.integers(0, 9), max_size=30), st.lists(st.integers(0, 9), max_size=12))
def test_taken_objects_equal_a_plain_loop(rows, wanted):
    rows.sort()
    all_objects = objects(rows)
    expected = [(new, i) for new, row in enumerate(wanted) for i in range(len(rows)) if rows[i] == row]

    taken = all_objects.take(np.array(wanted, np.int64))

    assert expected == list(zip(taken.row.tolist(), taken.area.astype(int).tolist(), strict=True))
    assert [i % 3 for _, i in expected] == taken.label.tolist()
    assert (taken.box == taken.area[:, None]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": ["train", "val"]}, "Expected splits to have one entry per image"),
        ({"owners": np.array([0, 1])}, "Expected owners to have one entry per image"),
        ({"image_ids": ["a", "b", "a"]}, r"1 duplicates, first \['a'\]"),
        ({"splits": ["train", "dev", "test"]}, r"got \['dev'\]"),
        ({"owners": np.array([0, -2, 1])}, "got -2"),
        ({"owner_names": ["only"]}, "Expected every owner to have a name, got owner 1 of 1 names"),
        ({"objects": objects([0, 2, 1])}, "Expected objects to be sorted by row"),
        ({"objects": objects([0, 3])}, "from 0 to 2"),
        ({"objects": objects([0, 1, 1, 2], num_labels=4)}, "Expected labels of objects to be below 3, got 0 to 3"),
    ],
)
def test_a_wrong_table_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        table(**changes)


def test_labels_of_a_table_are_int8_states():
    with pytest.raises(ValueError, match="Expected label states"):
        table(labels=np.full((3, 3), 2, np.int8))
    with pytest.raises(ValueError, match="Expected labels to be int8"):
        table(labels=np.zeros((3, 3)))
