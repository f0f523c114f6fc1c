import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmlic.errors import InputError
from fedmlic.formats import csv_rows
from fedmlic.problems import Problems


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


@pytest.mark.parametrize(
    "text",
    ["a,b\n1,2,\n3,4,\n", "a,b\n1,2,,,\n3,,,,\n", "a,b,,,\n1,2\n3,4\n", "a,b,,\n1,2\n", "a,b,\n1,2,\n,,\n3,4,\n"],
)
def test_the_same_blank_cells_at_the_end_of_every_line_do_not_matter(tmp_path, text):
    path = write(tmp_path / "t.csv", text)

    assert [row.cells[0] for row in csv_rows.rows(path, ["a", "b"])] == ["1", "3"][: text.count("\n") - 1]


@given(
    cells=st.lists(st.lists(st.sampled_from(["", "x", "y"]), min_size=4, max_size=4), min_size=1, max_size=5),
    surplus=st.sampled_from(["", "z"]),
    data=st.data(),
)
def test_a_cell_too_many_or_too_few_in_one_line_never_moves_the_others(tmp_path_factory, cells, surplus, data):
    """Wherever it is, whatever it holds and however few cells are asked for."""
    cells = [["p", *row] for row in cells]
    place = data.draw(st.integers(0, len(cells) - 1))
    column = data.draw(st.integers(0, 5))
    if data.draw(st.booleans()) or column == 5:
        cells[place].insert(column, surplus)
    else:
        cells[place].pop(column)
    path = write(tmp_path_factory.mktemp("csv") / "t.csv", "\n".join(",".join(row) for row in [list("abcde"), *cells]))

    if not any(cells[place]):
        return  # a blank line
    with pytest.raises(InputError, match=rf"line {place + 2}: {len(cells[place])} cells, where the header names 5"):
        list(csv_rows.rows(path, ["a", "b"]))


def test_a_surplus_that_may_be_in_the_middle_of_every_line_is_refused(tmp_path):
    """The last column is blank everywhere: nothing shows where the surplus is."""
    path = write(tmp_path / "t.csv", "a,b,c\n1,2,,\n1,3,,\n")

    with pytest.raises(InputError, match="line 2: 4 cells") as caught:
        list(csv_rows.rows(path, ["a", "b", "c"]))
    assert len(caught.value.problems) == 2


def test_problems_of_single_lines_can_be_collected(tmp_path):
    path = write(tmp_path / "t.csv", "a,b\n1,2\n1\n3,4,5\n6,\0\n7,8\n")
    problems = Problems("Expected all", complete=True)

    assert [row.line for row in csv_rows.rows(path, ["a", "b"], problems)] == [2, 6]
    expected = f"Expected every line of {path} to have one cell for each of 2 columns, got "
    assert problems.lines == [
        f"{expected}line 3: 1 cells, where the header names 2",
        f"{expected}line 4: 3 cells, where the header names 2",
        f"{expected}line 5: a NUL character in a cell",
    ]


def test_a_quoted_name_with_commas_is_several_columns_on_request(tmp_path):
    path = write(tmp_path / "t.csv", 'a,"b[x,y]",c\n1,2,3,4\n')

    assert csv_rows.columns(path, flat=True) == ["a", "b[x", "y]", "c"]
    assert [row.cells for row in csv_rows.rows(path, ["a", "c"], flat=True)] == [("1", "4")]


def test_a_line_is_the_one_that_a_row_begins_on(tmp_path):
    path = write(tmp_path / "t.csv", 'a,b\n"1\n1",2\n3,4\n')

    assert [row.line for row in csv_rows.rows(path, ["a"])] == [2, 4]


def test_other_delimiters(tmp_path):
    path = write(tmp_path / "t.csv", "a;b\n1;2\n")

    assert list(csv_rows.lines(path, ";")) == [(1, ["a", "b"]), (2, ["1", "2"])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begin with a header, got none"),
        ("\na,b\n", "begin with a header, got none"),
        ("a,bb\n", "'b' 0 times. Did you mean 'bb'?"),
        ("a,b,b\n1,2,3\n", "'b' 2 times"),
        ("a,b\n1,2\n1\n1,2\n,\n3\n", "line 3: 1 cells, where the header names 2\n  line 6: 1 cells"),
        ('a,b\n1,2\n"1,2\n', "got line 3: a quotation mark that opens there and is not closed"),
        ('a,b\n"1"1,2\n', "got line 2: ',' expected after '\"'"),
        (f"a,b\n1,2\n1,{'x' * 140_000}\n", "got line 3: a cell of more than 131,072 characters"),
        ('a,b\n1,2\n1,"' + "x\n" * 100_000, "got line 3: a cell of more than 131,072 characters"),
        (b"a,b\n\xff,2\n", "got byte 0xff on line 2"),
        (b"a,b\n" + b"1,2\n" * 9000 + b"\xe4,2\n", "got byte 0xe4 on line 9002"),
        ("a,b\n1,2\n".encode("utf-16"), "got byte 0xff on line 1"),
        ("a;b\n1;2\n", "to be separated by commas (they look separated by semicolons)"),
        ('{"a": 1, "b": 2}', "'a' 0 times"),
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
