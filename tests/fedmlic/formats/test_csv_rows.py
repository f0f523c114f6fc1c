import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmlic.errors import InputError
from fedmlic.formats import csv_rows


def write(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_chosen_columns_in_the_order_asked_for(tmp_path):
    path = write(tmp_path / "t.csv", 'a,b,c\n1," x, y ",3\n\n , ,\n4,5,6')

    assert list(csv_rows.rows(path, ["c", "b"])) == [(2, ("3", "x, y")), (5, ("6", "5"))]
    assert csv_rows.columns(path) == ["a", "b", "c"]


@given(
    cells=st.lists(st.lists(st.text("ab,\"' \t", max_size=4), min_size=2, max_size=2), max_size=6),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
)
def test_it_agrees_with_quoting_by_hand(tmp_path_factory, cells, end, mark):
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in [["x", "y"], *cells]]
    text = ("\ufeff" if mark else "") + end.join(quoted)
    path = write(tmp_path_factory.mktemp("csv") / "t.csv", text)

    found = [list(row.cells) for row in csv_rows.rows(path, ["x", "y"])]

    assert found == [[cell.strip() for cell in row] for row in cells if any(cell.strip() for cell in row)]


def test_a_comma_too_many_and_unnamed_columns_do_not_matter(tmp_path):
    path = write(tmp_path / "t.csv", "a,b,,,\n1,2,\n3,4,,,,,\n")

    assert [row.cells for row in csv_rows.rows(path, ["a", "b"])] == [("1", "2"), ("3", "4")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begin with a header, got none"),
        ("\na,b\n", "begin with a header, got none"),
        ("a,bb\n", "'b' 0 times. Did you mean 'bb'?"),
        ("a,b,b\n1,2,3\n", "'b' 2 times"),
        ("a,b\n1,2\n1\n1,2\n,\n3\n", "line 3: 1 cells\n  line 6: 1 cells"),
        ('a,b\n"1,2\n', "to be a CSV file in UTF-8, got: unexpected end of data"),
        (b"a,b\n\xff,2\n", "to be a CSV file in UTF-8"),
    ],
)
def test_what_cannot_be_read_is_explained(tmp_path, text, message):
    path = write(tmp_path / "t.csv", text)

    with pytest.raises(InputError) as caught:
        list(csv_rows.rows(path, ["a", "b"]))
    assert message in str(caught.value)


def test_a_missing_table_names_the_ones_that_are_there(tmp_path):
    write(tmp_path / "other.csv", "a\n")

    with pytest.raises(InputError, match=r"got other\.csv there"):
        csv_rows.columns(tmp_path / "t.csv")
