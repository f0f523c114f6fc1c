import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.errors import InputError
from fedmlic.formats import json_arrays
from fedmlic.formats.json_arrays import read_arrays

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def flattened(document):
    """What ``read_arrays`` should yield, by a plain loop."""
    return [
        (key, element) for key, value in document.items() for element in (value if isinstance(value, list) else [value])
    ]


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.text(max_size=4), values, max_size=4),
    st.sampled_from([1, 2, 7, 4096]),
    st.sampled_from([None, 1]),
)
def test_it_yields_what_the_standard_decoder_reads(tmp_path_factory, document, window, indent):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(document, ensure_ascii=False, indent=indent), encoding="utf-8")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_arrays, "WINDOW_BYTES", window)
        found = list(read_arrays(path))

    assert flattened(document) == found


def test_a_byte_order_mark_and_line_ends_of_any_system(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{\r\n "a": [1,\r\n 2],\t"b": "x" }\r\n')

    assert list(read_arrays(path)) == [("a", 1), ("a", 2), ("b", "x")]


@pytest.mark.parametrize("window", [1, 1 << 22])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it ends before '{'"),
        ("[1, 2]", "'{' expected, got '['"),
        ('{"a": [1, 2', "it ends before ',' or ']'"),
        ('{"a": [{"id": 1}, {"id": ', "(character 25)"),
        ('{"a": [{"id": 1} {"id": 2}]}', "',' or ']' expected, got '{' (character 17)"),
        ('{"a": 1} x', "text behind the end (character 9)"),
        ('{"a": [1]', "it ends before ',' or '}'"),
        ("<html>", "'{' expected, got '<'"),
    ],
)
def test_a_broken_file_is_explained(tmp_path, monkeypatch, text, message, window):
    monkeypatch.setattr(json_arrays, "WINDOW_BYTES", window)
    path = tmp_path / "broken.json"
    path.write_text(text)

    with pytest.raises(InputError) as caught:
        list(read_arrays(path))

    assert f"Expected {path} to be JSON, got: " in str(caught.value)
    assert message in str(caught.value)


def test_bytes_that_are_no_utf8_and_too_deep_nesting_and_no_file(tmp_path):
    path = tmp_path / "a.json"
    for content, message in ((b'{"a": "\xff"}', "utf-8"), (b'{"a": ' + b"[" * 200_000, "recursion|to be JSON")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            list(read_arrays(path))
    with pytest.raises(InputError, match="No such file"):
        list(read_arrays(tmp_path / "none.json"))


def test_a_record_without_an_end_is_not_waited_for(tmp_path, monkeypatch):
    """Otherwise one wrong character at the start would load hundreds of megabytes."""
    monkeypatch.setattr(json_arrays, "WINDOW_BYTES", 64)
    monkeypatch.setattr(json_arrays, "RECORD_CHARACTERS", 1000)
    path = tmp_path / "a.json"
    path.write_text('{"a": [{"b" 1}, ' + " " * 100_000)
    read = []
    monkeypatch.setattr(json_arrays._Window, "more", _counting(json_arrays._Window.more, read))

    with pytest.raises(InputError, match="':' delimiter"):
        list(read_arrays(path))

    assert sum(read) < 10_000


def _counting(more, read):
    def counted(window):
        more(window)
        read.append(len(window.text))

    return counted


def test_memory_is_that_of_the_window(tmp_path):
    """Every record is held alone: the elements are decoded while the file is still being read."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": list(range(100_000))}))
    arrays = read_arrays(path)

    first = next(arrays)
    path.write_text("")  # what is not in the window yet is gone

    assert first == ("a", 0)
