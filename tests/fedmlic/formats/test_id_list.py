import pickle

import pytest

from fedmlic.errors import InputError
from fedmlic.formats.id_list import read_id_numbers, read_ids


@pytest.mark.parametrize(
    "content",
    [
        b"b\na\nc\n",
        b"b\na\nc",
        b"b\r\na\r\nc\r\n",
        b"\xef\xbb\xbfb\na\nc\n",
        b"\nb  \n\n a\nc\n\n",
    ],
    ids=["plain", "no final line end", "CRLF", "byte order mark", "blank lines and spaces"],
)
def test_lists_from_other_systems_read_the_same(tmp_path, content):
    path = tmp_path / "img_id.txt"
    path.write_bytes(content)

    assert read_ids(path) == ["b", "a", "c"]


def test_text_named_pkl_is_read_and_a_pickle_is_refused(tmp_path):
    path = tmp_path / "img_id.pkl"
    path.write_text("900001\n900002\n")
    assert read_id_numbers(path) == (900001, 900002)

    path.write_bytes(pickle.dumps([900001]))
    with pytest.raises(InputError, match="Pickles are not opened"):
        read_ids(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got 1 problem. Correct and start again:\n  no ids"),
        ("a\nb\na\n", "a stands 2 times"),
        ("a\nb  1\nc -1\n", "line 2: 'b  1' is not one word\n  line 3: 'c -1' is not one word"),
        ("a\nb\0\n", r"line 2: 'b\x00' is not one word"),
        ("a\x1cb\n", r"line 1: 'a\x1cb' is not one word"),
        ("a\n../../b\n", "line 2: '../../b' is a path, not the name of an image"),
        ("a\n" + 300 * "b", "has 300 characters"),
    ],
)
def test_a_wrong_list_is_explained(tmp_path, text, message):
    path = tmp_path / "a.txt"
    path.write_text(text)

    with pytest.raises(InputError) as caught:
        read_ids(path)

    assert message in str(caught.value)


def test_numbers_only(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("1\na\n-2\n")

    with pytest.raises(InputError) as caught:
        read_id_numbers(path)

    assert [line.partition(", got ")[2] for line in caught.value.problems] == [
        "line 2: 'a' is no whole number",
        "line 3: '-2' is no whole number",
    ]
    assert all(str(path) in line for line in caught.value.problems)
