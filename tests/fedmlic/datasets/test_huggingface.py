"""Sets written by the ``datasets`` library itself, in every form it has, against the values that went in."""

import json
import os
import sys
import unicodedata

import datasets as library
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedmlic.corpus import open_corpus
from fedmlic.datasets import huggingface as module
from fedmlic.errors import InputError
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.spec import Spec, build

NAMES = ["cat", "dog", "bird"]
SCALAR = {"class": library.ClassLabel(names=NAMES), "text": library.Value("string"), "number": library.Value("int32")}
COUNT = 6


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    library.utils.disable_progress_bars()
    yield
    library.utils.enable_progress_bars()


def picture(number):
    return Image.new("RGB", (12, 10), (number * 30, 255 - number * 30, 77))


def one_table(feature=None, values=None, count=COUNT, **more):
    """A table of pictures with a column ``labels``, and others as (feature, values)."""
    columns = {"image": (library.Image(), [picture(number) for number in range(count)])}
    if feature is not None:
        columns["labels"] = (feature, values)
    columns |= more
    features = library.Features({name: feature for name, (feature, _) in columns.items()})
    return library.Dataset.from_dict({name: values for name, (_, values) in columns.items()}, features=features)


def saved(tmp_path, *splits, **named):
    """The folder of tables written by ``save_to_disk``."""
    target = tmp_path / "set"
    if splits:
        splits[0].save_to_disk(target)
    else:
        library.DatasetDict(named).save_to_disk(target)
    return target


def made(path, **options):
    nothing_dealt = {"val_fraction": 0.0, "test_fraction": 0.0, "image_size": 8}
    return build("dataset", str(Spec("huggingface", {"path": str(path), **nothing_dealt, **options})))


def labels_of(data):
    return data.table().labels.tolist()


# Labels


@pytest.mark.parametrize("kind", SCALAR)
def test_lists_name_what_is_present(tmp_path, kind):
    numbers = [[0], [], [0, 2], None, [1, 1, 2], [2, 0]]
    values = [row if row is None or kind != "text" else [NAMES[number] for number in row] for row in numbers]
    data = made(saved(tmp_path, one_table(library.List(SCALAR[kind]), values)))

    order = {"class": NAMES, "text": sorted(NAMES), "number": ["0", "1", "2"]}[kind]
    numbered = range(3) if kind == "number" else [NAMES.index(name) for name in order]
    expected = [
        [UNKNOWN] * 3 if row is None else [PRESENT if number in row else ABSENT for number in numbered]
        for row in numbers
    ]
    assert list(data.label_names) == order
    assert labels_of(data) == expected
    assert data.table().report["rows_without_labels"] == 1


@given(
    numbers=st.lists(st.one_of(st.none(), st.lists(st.integers(0, 4), max_size=6)), min_size=1, max_size=8),
    order=st.permutations(["a", "b", "c", "d", "e"]),
)
@settings(max_examples=25, deadline=None)
def test_names_put_class_labels_in_their_order(numbers, order):
    rows = {"train": numbers}
    reader, column_of = module._vocabulary(rows, ["a", "b", "c", "d", "e"], order)

    names, states, problems = module._states(reader, rows, lambda v, w: reader.listed(v, w, column_of))

    for row, found in zip(numbers, states["train"].tolist(), strict=True):
        for name, state in zip(names, found, strict=True):
            known = ABSENT if row is None or "abcde".index(name) not in row else PRESENT
            assert state == (UNKNOWN if row is None else known)
    assert names == order
    assert problems == []


@pytest.mark.parametrize("nested", ["list of records", "record of lists"])
def test_a_dot_leads_into_records(tmp_path, nested):
    boxes, classes = library.List(library.Value("float32")), SCALAR["class"]
    numbers = [[0], [], [0, 2], [1], [1, 1, 2], [2, 0]]
    if nested == "list of records":
        feature = [{"category": classes, "bbox": boxes}]
        values = [[{"category": number, "bbox": [0.0] * 4} for number in row] for row in numbers]
    else:
        feature = {"category": library.List(classes), "bbox": library.List(boxes)}
        values = [{"category": row, "bbox": [[0.0] * 4] * len(row)} for row in numbers]
    data = made(saved(tmp_path, one_table(objects=(feature, values))), label_column="objects.category")

    assert labels_of(data) == [[int(number in row) for number in range(3)] for row in numbers]


@pytest.mark.parametrize("length", [-1, 4])
def test_vectors_hold_one_state_per_label(tmp_path, length):
    values = [[1, 0, -1, -2], [0, 0, 0, 0], None, [1, 1, 1, 1], [None, 0, 1, 0], [0, 1, 0, -1]]
    feature = library.List(library.Value("int8"), length=length)
    data = made(saved(tmp_path, one_table(feature, values)), label_form="vector", label_names=list("abcd"))

    none = UNKNOWN
    expected = [[1, 0, none, UNCERTAIN], [0] * 4, [none] * 4, [1] * 4, [none, 0, 1, 0], [0, 1, 0, none]]
    assert labels_of(data) == expected
    assert data.label_names == ("a", "b", "c", "d")


def test_one_column_per_label(tmp_path):
    table = one_table(
        cat=(library.Value("bool"), [True, False, None, True, False, True]),
        dog=(library.Value("float32"), [1.0, 0.0, float("nan"), -1.0, -2.0, None]),
        bird=(library.ClassLabel(names=["no", "yes"]), [0, 1, 1, 0, 0, 1]),
    )
    data = made(saved(tmp_path, table), label_columns=["dog", "cat", "bird"])

    assert data.label_names == ("dog", "cat", "bird")
    assert labels_of(data) == [[1, 1, 0], [0, 0, 1], [-1, -1, 1], [-1, 1, 0], [-2, 0, 0], [-1, 1, 1]]


@pytest.mark.parametrize(
    ("feature", "values", "options", "message"),
    [
        (
            SCALAR["text"],
            [["cat"], ["dgo"]],
            {"label_names": ["cat", "dog"]},
            r"train\[1\]: label 'dgo'. Did you mean 'dog'",
        ),
        (SCALAR["number"], [[0], [7]], {"label_names": ["a", "b"]}, r"train\[1\]: label 7. It has 2 labels"),
        (SCALAR["class"], [[0], [2]], {"label_names": ["cat", "dog"]}, r"train\[1\]: label 2"),
        (SCALAR["number"], [[0, 3], [-1]], {}, r"train\[1\]: label -1"),
        (SCALAR["number"], [[0, 1, 0], [1, 0, 0]], {}, r"Give label_form='vector'"),
        (SCALAR["number"], [[0, 1], [10**8]], {}, r"Give label_names"),
        (SCALAR["number"], [[1, 0], [5, 0]], {"label_form": "vector"}, r"train\[1\]: 5 for '0', which may be"),
        (SCALAR["number"], [[1, 0], [1]], {"label_form": "vector"}, r"train\[1\]: 1 states for 2 labels"),
        (SCALAR["text"], [["a"], ["b"]], {"label_form": "vector"}, r"'a' for '0', which may be"),
        (SCALAR["text"], [[], []], {}, r"label_names .* different names, at least one, got \[\]"),
        (library.List(SCALAR["text"]), [[["a"]], [["b"]]], {}, r"to hold lists of labels"),
    ],
)
def test_labels_that_are_none_are_named(tmp_path, feature, values, options, message):
    path = saved(tmp_path, one_table(library.List(feature), values, count=2))

    with pytest.raises(InputError, match=message):
        made(path, **options)


INT, FLOAT, BOOL, WORD = (library.Value(name) for name in ("int64", "float32", "bool", "string"))
NO_YES = library.ClassLabel(names=["yes", "no"])


@pytest.mark.parametrize(
    ("feature", "values", "options"),
    [
        (BOOL, [[True, False], [False, True], None], {}),
        (BOOL, [[True, False], [False, True], None], {"label_form": "vector"}),
        (FLOAT, [[1.0, 0.0], [0.0, 1.0], None], {}),
        (INT, [[1, 0], [0, 1], None], {"label_form": "vector"}),
        (WORD, [["1", "0"], ["No", "true"], None], {"label_form": "vector"}),
        (NO_YES, [[0, 1], [1, 0], None], {"label_form": "vector"}),
        (INT, [[0], [1], None], {"label_form": "list"}),
        (FLOAT, [[0.0], [1.0], None], {"label_form": "list"}),
        (INT, [[0], [1, 1], None], {}),
        (INT, [[0], [1], None], {"label_names": ["a", "b"]}),
    ],
)
def test_two_labels_written_in_every_form(tmp_path, feature, values, options):
    data = made(saved(tmp_path, one_table(library.List(feature), values, 3)), **options)

    assert labels_of(data) == [[1, 0], [0, 1], [UNKNOWN, UNKNOWN]]


@pytest.mark.parametrize(
    ("feature", "values", "options", "message"),
    [
        (INT, [[1, 0], [0, 1]], {}, "a vector with one state per label, or a list"),
        (INT, [[1, 0], [0, 1]], {"label_names": ["a", "b"]}, "a vector with one state per label"),
        (INT, [[1, 0], [0, 1]], {"label_names": ["a", "b", "c"]}, "up to 2 numbers .* 3 label_names"),
        (INT, [[1, 0, 0, 1, 0], [0] * 5], {"label_names": list("abcd")}, "up to 5 numbers .* 4 label_names"),
        (INT, [[1, 0, 0, 1, 0], [0] * 5], {"label_names": list("abcdef")}, "up to 5 numbers .* 6 label_names"),
        (INT, [[2, 0, 0, 1, 1], [0, 0, 3, 0, 0]], {"label_names": list("abcd")}, "up to 5 numbers .* 4 label_names"),
        (INT, [[0], [1]], {}, "Give label_form='vector' or label_form='list'"),
        (INT, [[0, 1], [0, 1]], {}, "a vector with one state per label"),
        (INT, [[1, -1], [0, 1]], {}, "a vector with one state per label"),
        (INT, [[1, 0], []], {}, "up to 2 numbers in each list that are 0 or 1: a vector with one state"),
        (INT, [[1], []], {}, "up to 1 number in each list"),
        (INT, [[2, 0, 0], [0, 1, 0]], {}, "a vector with one state per label"),
        (BOOL, [[True, False], [True, True]], {"label_form": "list"}, "booleans, which are states"),
        (FLOAT, [[0.9, 0.1], [0.3, 0.2]], {}, "'labels' .* numbers such as 0.9, which are neither states nor labels"),
        (FLOAT, [[0.9, 0.1], [0.3, 0.2]], {"label_form": "list"}, "numbers such as 0.9"),
        (FLOAT, [[1.0, float("inf")], [0.0, 1.0]], {}, "numbers such as inf, which are neither states nor labels"),
        (FLOAT, [[3.0], [1.0, 2.0]], {}, "whole numbers stored as decimals"),
        (WORD, [["1", "0"], ["0", "1"]], {}, "'0', '1', which are states rather than names"),
        (NO_YES, [[1, 0], [1, 1]], {}, "'no', 'yes', which are states rather than names"),
        (SCALAR["class"], [[0, 1, 1], [1, 0, 0]], {"label_form": "vector"}, "to be states .* got 'cat', 'dog'"),
        (WORD, [["Kreis"], ["kreis"]], {}, "'Kreis', 'kreis' differ only in case"),
        (WORD, [["a", "b"], ["a, b"]], {}, "'a, b' looks like several labels"),
        (WORD, [["a", ""], ["b"]], {}, "'' is blank: leave it out"),
        (library.ClassLabel(names=["Cat", "cat"]), [[0], [1]], {}, "'Cat', 'cat' differ only in case"),
    ],
)
def test_what_may_mean_two_things_is_refused(tmp_path, feature, values, options, message):
    path = saved(tmp_path, one_table(library.List(feature), values, 2))

    with pytest.raises(InputError, match=message):
        made(path, **options)


def of_classes(*names):
    return library.ClassLabel(names=list(names))


@pytest.mark.parametrize(
    ("train", "test", "options", "message"),
    [
        (
            library.List(of_classes("cat", "dog", "bird")),
            library.List(of_classes("cat", "bird", "dog")),
            {},
            "class 1 'dog' in split 'train' and 'bird' in split 'test'",
        ),
        (
            library.List(of_classes("cat", "dog")),
            library.List(of_classes("cat", "dog", "bird")),
            {},
            "2 classes in split 'train' and 3 in split 'test'",
        ),
        (
            library.List(of_classes("cat", "dog")),
            library.List(library.Value("int64")),
            {"label_form": "list"},
            "values of kind class in split 'train' and of kind int in split 'test'",
        ),
        (
            library.List(library.Value("int64")),
            library.List(of_classes("cat", "dog")),
            {"label_form": "list"},
            "values of kind int in split 'train' and of kind class in split 'test'",
        ),
        (
            library.List(library.Value("bool")),
            library.List(library.Value("int64")),
            {},
            "values of kind bool in split 'train' and of kind int in split 'test'",
        ),
        (library.List(of_classes("cat", "dog")), of_classes("cat", "dog"), {}, r"lists .* in split 'test'"),
        (
            of_classes("no", "yes"),
            of_classes("yes", "no"),
            {"label_columns": ["labels"]},
            "class 0 'no' in split 'train' and 'yes' in split 'test'",
        ),
        (
            of_classes("yes", "no"),
            library.Value("int64"),
            {"label_columns": ["labels"]},
            "values of kind class in split 'train' and of kind int in split 'test'",
        ),
    ],
)
def test_a_label_column_that_means_something_else_in_another_split_is_refused(tmp_path, train, test, options, message):
    def table(feature):
        lists = not isinstance(feature, (library.ClassLabel, library.Value))
        return one_table(feature, [[number % 2] if lists else number % 2 for number in range(COUNT)])

    folder = saved(tmp_path, train=table(train), test=table(test))

    with pytest.raises(InputError, match=message):
        made(folder, **options)


def test_splits_without_any_value_and_of_other_widths_of_number_are_no_difference(tmp_path):
    classes = library.List(of_classes("cat", "dog"))
    train = one_table(library.List(library.Value("null")), [[]] * COUNT)
    folder = saved(tmp_path, train=train, test=one_table(classes, [[1]] * COUNT))
    data = made(folder)

    assert list(data.label_names) == ["cat", "dog"]
    assert labels_of(data) == [[ABSENT, ABSENT]] * COUNT + [[ABSENT, PRESENT]] * COUNT
    for other in ("null", "int64"):
        silent = one_table(library.Value(other), [None] * COUNT)
        folder = saved(tmp_path / other, train=one_table(classes, [[1]] * COUNT), test=silent)
        if other == "null":
            assert labels_of(made(folder))[COUNT:] == [[UNKNOWN, UNKNOWN]] * COUNT
        else:
            with pytest.raises(InputError, match="to hold lists of labels, got Value"):
                made(folder)
    widths = [one_table(library.List(library.Value(width)), [[0, 2]] * COUNT) for width in ("int64", "int8")]
    numbers = saved(tmp_path / "numbers", train=widths[0], test=widths[1])
    assert labels_of(made(numbers, label_form="list")) == [[PRESENT, ABSENT, PRESENT]] * 2 * COUNT


def test_classes_of_columns_are_states_by_their_names(tmp_path):
    table = one_table(
        cat=(NO_YES, [0, 1, None]),
        dog=(library.ClassLabel(names=["present", "uncertain", "absent"]), [0, 1, 2]),
        count=3,
    )

    assert labels_of(made(saved(tmp_path, table), label_columns=["cat", "dog"])) == [[1, 1], [0, -2], [-1, 0]]
    with pytest.raises(InputError, match=r"classes of column 'labels' .* got 'cat'"):
        made(saved(tmp_path / "b", one_table(SCALAR["class"], [0] * COUNT)), label_columns=["labels"])


def test_a_class_that_was_not_given_is_unknown(tmp_path):
    columns = one_table(cat=(NO_YES, [0, 1, -1]), dog=(NO_YES, [-1, 0, None]), count=3)
    vectors = one_table(library.List(NO_YES), [[0, -1], [1, 0], [-1, None]], 3)
    lists = one_table(library.List(SCALAR["class"]), [[0, 2], [-1], []], 3)

    states = [[PRESENT, UNKNOWN], [ABSENT, PRESENT], [UNKNOWN, UNKNOWN]]
    assert labels_of(made(saved(tmp_path / "columns", columns), label_columns=["cat", "dog"])) == states
    assert labels_of(made(saved(tmp_path / "vectors", vectors), label_form="vector")) == states
    assert labels_of(made(saved(tmp_path / "lists", lists))) == [[1, 0, 1], [UNKNOWN] * 3, [0, 0, 0]]
    half = saved(tmp_path / "half", one_table(library.List(SCALAR["class"]), [[0], [2, -1], [1]], 3))
    with pytest.raises(InputError, match=r"train\[1\]: label -1, which says that no class was given, beside others"):
        made(half)


def test_names_of_columns_may_hold_dots(tmp_path):
    table = one_table(
        **{"v1.0": (NO_YES, [0, 1, 0]), "x.list": (library.List(SCALAR["class"]), [[0], [1], []])},
        v1=(library.Value("int64"), [0, 0, 0]),
        count=3,
    )
    path = saved(tmp_path, table)

    assert labels_of(made(path, label_columns=["v1.0"])) == [[PRESENT], [ABSENT], [PRESENT]]
    assert labels_of(made(path, label_column="x.list")) == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    for options in ({"label_columns": ["v1.1"]}, {"label_columns": ["v1.0"], "owner_column": "v1.x"}):
        with pytest.raises(InputError, match=r"split 'train' has no column 'v1\.[1x]'"):
            made(path, **options)


def test_letters_may_be_composed_or_not(tmp_path):
    whole, parts = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    table = one_table(library.List(WORD), [[whole], [parts, "x"]], 2, who=(WORD, [parts, whole]))

    data = made(saved(tmp_path, table), owner_column="who")

    assert data.label_names == (whole, "x")
    assert labels_of(data) == [[1, 0], [1, 1]]
    assert data.table().owner_names == [whole]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [{"file_name": "0.png", "labels": ["a"]}, {"file_name": "1.png", "labels": 5}],
            "line 2: 'labels' holds a number",
        ),
        (
            [{"file_name": "0.png", "labels": ["a"]}, {"file_name": "1.png", "labels": [5]}],
            "line 2: 'labels' holds a list",
        ),
        ([{"file_name": "0.png", "labels": ["a"]}, "{bad"], "line 2: no JSON"),
        ([{"file": "0.png", "labels": ["a"]}], "line 1: no 'file_name'"),
    ],
)
def test_odd_metadata_are_named_by_file_line_and_cause(tmp_path, lines, message):
    root = tmp_path / "set"
    root.mkdir()
    image_folder(root, one_table(library.List(SCALAR["text"]), [["cat"]] * COUNT))
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / "train" / "metadata.jsonl").write_text(text + "\n")

    with pytest.raises(InputError, match=rf"train/metadata\.jsonl {message}"):
        made(root)


def test_odd_rows_that_the_library_accepts_are_named(tmp_path):
    rows = [{"image": "x.png", "labels": ["a"]}, {"image": "y.png", "labels": "b"}]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    with pytest.raises(InputError, match=r"all\.jsonl line 2: 'labels' holds a text"):
        made(tmp_path / "all.jsonl")


def test_an_error_comes_with_those_behind_it():
    outer = ValueError("An error occurred")
    outer.__cause__ = TypeError("row 3 is odd.")

    assert module._causes(outer) == "ValueError: An error occurred; caused by TypeError: row 3 is odd"


def test_a_column_without_lists_is_refused(tmp_path):
    path = saved(tmp_path, one_table(SCALAR["class"], [0] * COUNT))

    with pytest.raises(InputError, match=r"to hold lists of labels, got ClassLabel.*Give label_column"):
        made(path)


def test_wrong_columns_are_named_all_at_once(tmp_path):
    path = saved(tmp_path, one_table(library.List(SCALAR["class"]), [[0]] * COUNT))

    with pytest.raises(InputError, match="got 3 problems") as caught:
        made(path, image_column="img", label_column="label", owner_column="user")
    assert "split 'train' has no column 'label'. Did you mean 'labels'?" in str(caught.value)


@pytest.mark.parametrize(("form", "box"), [("xywh", [3, 2, 6, 5]), ("xyxy", [3, 2, 9, 7])])
@pytest.mark.parametrize("nested", [True, False])
def test_boxes_become_objects_in_stored_pixels(tmp_path, form, box, nested):
    boxes, classes = library.List(library.Value("float32")), library.List(SCALAR["class"])
    numbers = [[0], [], [0, 2], None, [1, 1, 2], [2, 0]]
    found = [row and [box for _ in row] for row in numbers]
    if nested:
        values = [{"category": row, "bbox": place} for row, place in zip(numbers, found, strict=True)]
        table = one_table(objects=({"category": classes, "bbox": library.List(boxes)}, values))
        columns = {"label_column": "objects.category", "box_column": "objects.bbox"}
    else:
        table = one_table(labels=(classes, numbers), where=(library.List(boxes), found))
        columns = {"box_column": "where"}

    objects = made(saved(tmp_path, table), image_size=24, box_form=form, **columns).table().objects

    assert objects.row.tolist() == [place for place, row in enumerate(numbers) for _ in row or []]
    assert objects.label.tolist() == [number for row in numbers for number in row or []]
    assert np.allclose(objects.box, [3 * 2, 2 * 2.4, 6 * 2, 5 * 2.4])  # 12 x 10 pixels became 24 x 24
    assert np.allclose(objects.area, 12 * 12)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[[1, 1, 2, 2]], []], r"train\[1\]: 1 labels and 0 boxes"),
        ([[[1, 1, 2, 2]], [[1, 1, 2]]], r"train\[1\]: box \[1.0, 1.0, 2.0\], which must be four numbers"),
        ([[[1, 1, 2, 2]], [[5, 1, -2, 2]]], r"train\[1\]: box .* ends before it begins"),
    ],
)
def test_boxes_that_are_none_are_named(tmp_path, boxes, message):
    feature = library.List(library.List(library.Value("float32")))
    path = saved(tmp_path, one_table(library.List(SCALAR["class"]), [[0], [1]], 2, where=(feature, boxes)))

    with pytest.raises(InputError, match=message):
        made(path, box_column="where").table()


# Where it comes from


def parquet(root, table):
    for split in ("train", "validation", "test"):
        table.to_parquet(root / f"{split}-00000-of-00001.parquet")


def image_folder(root, table):
    for split in ("train", "validation", "test"):
        (root / split).mkdir()
        lines = []
        for number, row in enumerate(table):
            row["image"].save(root / split / f"{number}.png")
            lines.append(json.dumps({"file_name": f"{number}.png", "labels": row["labels"]}) + "\n")
        (root / split / "metadata.jsonl").write_text("".join(lines))


def disk(root, table):
    library.DatasetDict({"train": table, "validation": table, "test": table}).save_to_disk(root)


@pytest.mark.parametrize("write", [parquet, image_folder, disk])
def test_every_form_on_disk_gives_the_same_corpus(tmp_path, write):
    rows = [["cat"], [], ["bird", "cat"], ["dog"], ["bird"], ["cat", "dog"]]
    root = tmp_path / "set"
    root.mkdir()
    write(root, one_table(library.List(SCALAR["text"]), rows))

    data = made(root)
    corpus = open_corpus(data, home=tmp_path / "home")

    assert {split: len(span) for split, span in corpus.splits.items()} == {"train": 6, "val": 6, "test": 6}
    assert corpus.label_names == ("bird", "cat", "dog")
    everything = np.arange(6)
    assert corpus.labels.take(everything).tolist() == [[int(n in row) for n in corpus.label_names] for row in rows]
    expected = [np.asarray(picture(number))[0, 0] for number in range(6)]
    assert corpus.images.take(everything)[:, 4, 4].tolist() == np.array(expected).tolist()
    assert made(root).identity == data.identity
    assert str(tmp_path) not in json.dumps(dict(data.identity))


def test_a_single_parquet_file_is_training_data(tmp_path):
    table = one_table(library.List(SCALAR["class"]), [[0]] * COUNT)
    table.to_parquet(tmp_path / "all.parquet")

    assert made(tmp_path / "all.parquet").table().splits == ["train"] * COUNT


def test_names_of_files_and_bytes_may_stand_for_images(tmp_path):
    rows = []
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
        rows.append({"file": f"{number}.png", "bytes": (tmp_path / f"{number}.png").read_bytes(), "labels": ["a"]})
    library.Dataset.from_list(rows).to_parquet(tmp_path / "all.parquet")

    by_name = made(tmp_path / "all.parquet", image_column="file")
    by_bytes = made(tmp_path / "all.parquet", image_column="bytes")

    for row in range(3):
        assert (by_name.image(row) == by_bytes.image(row)).all()
        assert by_name.image(row)[3, 3].tolist() == list(picture(row).getpixel((0, 0)))
    assert by_name.table().sources == [str(tmp_path / f"{number}.png") for number in range(3)]
    assert by_bytes.table().sources == ["train[0]", "train[1]", "train[2]"]


def test_images_that_cannot_be_decoded_are_named(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    image_folder(root, one_table(library.List(SCALAR["text"]), [["cat"]] * COUNT))
    data = made(root)
    (root / "train" / "1.png").write_bytes(b"")
    (root / "test" / "2.png").unlink()

    with pytest.raises(InputError, match="got 2 problems") as caught:
        open_corpus(data, home=tmp_path / "home")

    assert sorted(line.split(": ")[0] for line in caught.value.problems) == [
        str(root / "test" / "2.png"),
        str(root / "train" / "1.png"),
    ]


def test_images_of_every_mode_are_decoded(tmp_path):
    pictures = {
        "L": Image.new("L", (9, 9), 100),
        "P": Image.new("RGB", (9, 9), (10, 200, 30)).quantize(4),
        "RGBA": Image.new("RGBA", (9, 9), (200, 0, 0, 0)),
        "I;16": Image.fromarray(np.full((9, 9), 257 * 50, np.uint16)),
    }
    for mode, image in pictures.items():
        assert image.mode == mode
        image.save(tmp_path / f"{mode.replace(';', '')}.png")
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    library.Dataset.from_list([{"image": name, "labels": ["x"]} for name in names]).to_parquet(tmp_path / "t.parquet")
    data = made(tmp_path / "t.parquet")

    found = {name: data.image(row)[2, 2].tolist() for row, name in enumerate(names)}

    assert found == {"I16.png": [50] * 3, "L.png": [100] * 3, "P.png": [10, 200, 30], "RGBA.png": [0] * 3}


def test_a_changed_file_and_changed_labels_are_another_data_set(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    image_folder(root, one_table(library.List(SCALAR["text"]), [["cat"]] * COUNT))
    before = made(root).identity
    stat = (root / "train" / "1.png").stat()

    os.utime(root / "train" / "1.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))

    assert made(root).identity != before
    os.utime(root / "train" / "1.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert made(root).identity == before


# Splits, owners, ids


def test_splits_are_chosen_by_name_and_others_reported(tmp_path):
    table = one_table(library.List(SCALAR["class"]), [[0]] * COUNT)
    path = saved(tmp_path, a=table, b=table, c=table)

    data = made(path, splits={"train": "b", "test": "a"})

    assert data.table().splits == ["train"] * COUNT + ["test"] * COUNT
    assert data.table().image_ids[0] == "b/00000000"
    assert data.table().report["unused_splits"] == ["c"]
    with pytest.raises(InputError, match=r"val='bb'. Did you mean 'b'"):
        made(path, splits={"train": "a", "val": "bb"})
    with pytest.raises(InputError, match=r"to have training images, got the splits \['a', 'b', 'c'\]"):
        made(path)


def test_missing_splits_are_taken_from_training_images_and_keep_owners_whole(tmp_path):
    count = 200
    owners = [f"o{number % 40}" if number % 4 else None for number in range(count)]
    table = one_table(library.List(SCALAR["class"]), [[0]] * count, count, who=(library.Value("string"), owners))
    path = saved(tmp_path, table)

    found = made(path, owner_column="who", val_fraction=0.2, test_fraction=0.1, seed=3).table()

    sizes = {split: found.splits.count(split) for split in ("train", "val", "test")}
    assert sizes["val"] == pytest.approx(40, abs=5)
    assert sizes["test"] == pytest.approx(20, abs=5)
    for owner in set(found.owners.tolist()) - {-1}:
        assert len({found.splits[row] for row in np.flatnonzero(found.owners == owner)}) == 1
    names = [found.owner_names[owner] if owner >= 0 else None for owner in found.owners.tolist()]
    assert names == owners


def test_owners_whose_classes_differ_between_splits_are_refused(tmp_path):
    labels = [[0]] * COUNT
    first, other = (
        one_table(library.List(SCALAR["class"]), labels, who=(of_classes(*names), [0, 1, -1] * 2))
        for names in (("ann", "bob"), ("bob", "ann"))
    )

    with pytest.raises(InputError, match=r"column 'who' .* class 0 'ann' in split 'train' and 'bob' in split 'test'"):
        made(saved(tmp_path / "differ", train=first, test=other), owner_column="who")
    table = made(saved(tmp_path / "same", train=first, test=first), owner_column="who").table()
    assert np.array_equal(table.owners[:COUNT], table.owners[COUNT:])
    assert [row == -1 for row in table.owners.tolist()] == [False, False, True] * 4
    assert len(table.owner_names) == 2


def test_ids_must_differ(tmp_path):
    table = one_table(
        library.List(SCALAR["class"]), [[0]] * COUNT, key=(library.Value("int64"), [1, 2, 3, 2**40, 5, 6])
    )
    path = saved(tmp_path, table)

    assert made(path, id_column="key").table().image_ids == ["1", "2", "3", str(2**40), "5", "6"]
    library.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "two")
    with pytest.raises(InputError, match="got 6 problems") as caught:
        made(tmp_path / "two", id_column="key")
    assert caught.value.problems[0].endswith("to be as described, got id '1' appears 2 times")


# Nothing there


def test_nothing_there_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="to exist, or to name a data set of the hub"):
        made(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="to be a folder or file that the library reads"):
        made(tmp_path / "empty")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(InputError, match=r"ends in '.txt'; known: .parquet"):
        made(tmp_path / "a.txt")
    with pytest.raises(InputError, match="to be a data set of the hub, got 'nobody/nothing'"):
        made("nobody/nothing")


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(InputError, match=r"pip install 'fedmlic\[hub\]'"):
        made(tmp_path)
