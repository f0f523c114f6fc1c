import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmlic.formats.json_rows import MAX_LINES, kind_of, odd_rows


def written(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"a": ["x"]}, {"a": 5}], "line 2: 'a' holds a number (5), where line 1 holds a list of text"),
        (
            [{"a": None}, {"a": [1]}, {"a": []}, {"a": ["x"]}],
            "line 4: 'a' holds a list of text ([\"x\"]), where line 2",
        ),
        ([{"a": True}, {"a": 1}], "line 2: 'a' holds a number (1), where line 1 holds a boolean"),
        ([{"a": [1, "x"]}], "line 1: 'a' holds a list of mixed number and text: [1, \"x\"]"),
        ([{"a": 1}, "{bad"], "line 2: no JSON: "),
        ([[1]], "line 1: list of number, where an object is expected"),
    ],
)
def test_the_line_and_the_cause(tmp_path, rows, problem):
    found = odd_rows(written(tmp_path, *rows))

    assert len(found) == 1
    assert found[0].startswith(problem)


def test_rows_that_fit(tmp_path):
    rows = [
        {"a": [], "b": 1},
        {"a": None, "b": 2.5, "c": "x"},
        {"a": ["x"]},
        {"a": [None, "y"], "d": [[]]},
        {"d": [[1]]},
    ]

    assert odd_rows(written(tmp_path, *rows)) == []
    assert len(odd_rows(written(tmp_path, {"a": 1}, *[{"a": "x"}] * 50))) == MAX_LINES


@given(st.lists(st.dictionaries(st.sampled_from("ab"), st.none() | st.integers() | st.floats(-1, 1)), max_size=5))
def test_numbers_and_nulls_always_fit(tmp_path_factory, rows):
    assert odd_rows(written(tmp_path_factory.mktemp("rows"), *rows)) == []
    assert {kind_of(value) for row in rows for value in row.values()} <= {"number", "null"}
