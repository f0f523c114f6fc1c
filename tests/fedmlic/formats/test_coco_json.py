import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.errors import InputError
from fedmlic.formats import coco_json
from fedmlic.formats.coco_json import read_categories, read_instances

CATEGORIES = [{"id": 5, "name": "cat", "supercategory": "animal"}, {"id": 2, "name": "dog"}]


def image(number, **more):
    return {"id": number, "file_name": f"{number}.jpg", "width": 10, "height": 8, **more}


def thing(image_id, category_id, box=(1.0, 2.0, 3.0, 4.0), **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "area": 6.0, "iscrowd": 0, **more}


def read(path, images=(), annotations=(), categories=CATEGORIES, **more):
    path.write_text(
        json.dumps({"images": list(images), "annotations": list(annotations), "categories": list(categories), **more})
    )
    return read_instances(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.json"


def arrays(found):
    """Everything of a reading that can be compared."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(found).items()}


def test_a_hand_example(path):
    found = read(path, [image(9), image(3)], [thing(9, 5), thing(3, 2, (0, 0, 1, 1), iscrowd=1, area=0.5)])

    assert [category[:2] for category in found.categories] == [(2, "dog"), (5, "cat")]
    assert found.categories[1].text("supercategory") == "animal"
    assert found.categories[0].text("supercategory") == ""
    assert found.image_ids.tolist() == [3, 9]
    assert found.files == ["3.jpg", "9.jpg"]
    assert found.sizes.tolist() == [[10, 8], [10, 8]]
    assert (found.row.tolist(), found.category.tolist()) == ([0, 1], [0, 1])
    assert found.box.tolist() == [[0, 0, 1, 1], [1, 2, 3, 4]]
    assert found.area.tolist() == [0.5, 6]
    assert found.crowd.tolist() == [True, False]
    assert found.problems == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([2, 5]), st.integers(0, 2), st.integers(0, 1)), max_size=12),
    st.randoms(use_true_random=False),
)
def test_the_order_of_arrays_and_keys_changes_nothing(tmp_path_factory, entries, rng):
    path = tmp_path_factory.getbasetemp() / "shuffled.json"
    images = [image(1 << (10 * number)) for number in range(5)]
    annotations = [thing(1 << (10 * i), c, (x, 1, 2, 3), iscrowd=crowd) for i, c, x, crowd in entries]
    expected = read(path, images, annotations)
    document = json.loads(path.read_text())
    for array in document.values():
        rng.shuffle(array)
    keys = list(document)
    rng.shuffle(keys)
    path.write_text(json.dumps({key: document[key] for key in keys}))

    assert arrays(expected) == arrays(read_instances(path))
    assert set(zip(expected.row.tolist(), expected.category.tolist(), strict=True)) == {
        (i, [2, 5].index(c)) for i, c, _, _ in entries
    }
    assert len(expected.row) + expected.duplicates == len(entries)


def test_ids_as_text_and_beyond_32_and_53_bits(path):
    big = (1 << 62) + 1
    numbers = read(path, [image(big), image(7)], [thing(big, 5), thing(7, 2)])
    texts = read(
        path,
        [image(7), image(str(big), file_name=f"{big}.jpg")],
        [thing("7", "2"), thing(str(big), "5")],
        [{"id": "5", "name": "cat", "supercategory": "animal"}, {"id": "2", "name": "dog"}],
    )

    assert numbers.image_ids.tolist() == [7, big]
    assert arrays(numbers) == arrays(texts)


def test_files_are_named_by_address_where_they_have_no_name(path):
    v1 = {"id": 1, "coco_url": "http://images.cocodataset.org/val2017/000000000001.jpg"}
    backslashes = {"id": 2, "file_name": "val2014\\x.jpg"}

    found = read(path, [v1, backslashes])

    assert found.files == ["val2017/000000000001.jpg", "val2014/x.jpg"]
    assert found.sizes.tolist() == [[0, 0], [0, 0]]


def test_verified_absent_and_not_exhaustive(path):
    images = [image(4, neg_category_ids=[5, 5], not_exhaustive_category_ids=[2]), image(3, neg_category_ids=[2])]

    found = read(path, images)

    assert found.negative.tolist() == [[0, 0], [1, 1]]
    assert found.not_exhaustive.tolist() == [[1, 0]]


def test_what_may_be_left_out(path):
    found = read(path, [image(1)], [{"image_id": 1, "category_id": 5, "bbox": [-1.5, 0, 2, 4]}])

    assert found.problems == []
    assert found.area.tolist() == [8]
    assert found.crowd.tolist() == [False]
    assert found.box.tolist() == [[-1.5, 0, 2, 4]]


def test_images_without_annotations(path):
    found = read(path, [image(1)])

    assert found.problems == []
    assert (len(found.image_ids), len(found.row)) == (1, 0)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_what_says_the_labels_must_be_there_and_be_a_list(path, key):
    read(path, [image(1)], [thing(1, 5)])
    document = json.loads(path.read_text())

    for value, problem in (
        (None, f"{key} is null, not a list"),
        (document[key][0], f"{key} is an object, not a list"),
        (7, f"{key} is a number, not a list"),
        ("all", f"{key} is text, not a list"),
        (True, f"{key} is true or false, not a list"),
    ):
        path.write_text(json.dumps({**document, key: value}))
        assert read_instances(path).problems == [f"a.json: {problem}"]
    del document[key]
    path.write_text(json.dumps(document))
    assert read_instances(path).problems == [f"a.json: the key {key!r} is missing"]
    path.write_text(json.dumps(document)[:-1] + f', "{key}": [], "{key}": []}}')
    assert "is there twice" in read_instances(path).problems[0]


def test_lvis_must_say_what_is_absent_and_not_exhaustive(path):
    read(path, [image(1, neg_category_ids=[]), image(2, not_exhaustive_category_ids=None, neg_category_ids=[5])])

    assert read_instances(path, partial=True).problems == [
        "a.json: images[0]: not_exhaustive_category_ids of image 1 is missing",
        "a.json: images[1]: not_exhaustive_category_ids of image 2 is None, not a list of whole numbers",
    ]


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([image(1), image(1)], [], "image 1 appears 2 times"),
        ([image("x")], [], "images[0]: id 'x' is no whole number"),
        ([image(-1)], [], "images[0]: id -1 is no whole number"),
        ([image(1 << 63)], [], "images[0]: id 9223372036854775808 is no whole number"),
        ([{"id": 1, "width": 3, "height": 4}], [], "images[0]: image 1 has neither file_name nor coco_url"),
        ([image(1, width="wide")], [], "images[0]: image 1 has size 'wide' x 8"),
        ([image(1, width=0)], [], "images[0]: image 1 has size 0 x 8, not two numbers of pixels above 0"),
        ([image(1, height=float("inf"))], [], "image 1 has size 10 x inf"),
        ([image(1, width=None)], [], "image 1 has size None x 8"),
        ([{"id": 1, "file_name": "a.jpg", "width": 3}], [], "image 1 has size 3 x nothing"),
        ([image(None)], [], "images[0]: id None is no whole number"),
        ([image("9" * 5000)], [], "is no whole number"),
        ([image(1, file_name=None)], [], "file_name None of image 1 is null, no text"),
        ([image(1, file_name="a\0.jpg")], [], "holds the control character"),
        ([{"id": 1, "coco_url": 5}], [], "coco_url 5 of image 1 is 5, no text"),
        ([image(1)], [thing(1, 5, (1, 2, True, 4))], "bbox [1, 2, True, 4] is not"),
        (
            [image(1)],
            [{"image_id": 1, "category_id": 5, "bbox": [0, 0, 1e6, 1e6]}],
            "area 1000000000000.0 is no number",
        ),
        ([image(1)], [thing(1, 5, iscrowd=True)], "iscrowd True and ignore 0 are not 0 or 1"),
        ([image(1, neg_category_ids=[77])], [], "image 1: neg_category_ids names category 77, which is not described"),
        (
            [image(1, neg_category_ids=5)],
            [],
            "images[0]: neg_category_ids of image 1 is 5, not a list of whole numbers",
        ),
        ([image(1), 7], [], "images[1]: 7 instead of a record"),
        ([image(1)], [thing(2, 5)], "annotations[0]: image 2 is not described"),
        ([image(1)], [thing(1, 5), thing(1, 1)], "annotations[1]: category 1 is not described"),
        ([image(1)], [thing(None, 5)], "annotations[0]: image_id None and category_id 5 are no whole numbers"),
        ([image(1)], [thing(1, 5.5)], "annotations[0]: image_id 1 and category_id 5.5 are no whole numbers"),
        ([image(1)], [thing(1, 5, (1, 2, 3))], "annotations[0]: bbox [1, 2, 3] is not x, y, width, height"),
        ([image(1)], [thing(1, 5, (1, 2, -3, 4))], "annotations[0]: bbox [1, 2, -3, 4] is not x, y, width, height"),
        ([image(1)], [thing(1, 5, (1, 2, float("nan"), 4))], "annotations[0]: bbox [1, 2, nan, 4] is not"),
        ([image(1)], [thing(1, 5, (1, float("inf"), 3, 4))], "annotations[0]: bbox [1, inf, 3, 4] is not"),
        ([image(1)], [thing(1, 5, area="big")], "annotations[0]: area 'big' is no number of pixels"),
        ([image(1)], [thing(1, 5, iscrowd=2)], "annotations[0]: iscrowd 2 and ignore 0 are not 0 or 1"),
        ([], [], "no images"),
    ],
)
def test_a_problem_is_named(path, images, annotations, message):
    problems = read(path, images, annotations).problems

    assert len(problems) == 1
    assert message in problems[0]


def test_all_problems_are_kept(path):
    annotations = [thing(1, 5), thing(2, 5), thing(1, 9), thing(1, 5, ("a", 1, 1, 1))]

    found = read(
        path, [image(1), image(1)], annotations, [*CATEGORIES, {"id": 5, "name": "cow"}, {"id": 8, "name": ""}]
    )

    assert found.problems == [
        "a.json: annotations[3]: bbox ['a', 1, 1, 1] is not x, y, width, height",
        "a.json: categories[3]: name '' is blank",
        "a.json: category id 5 appears 2 times",
        "a.json: image 1 appears 2 times",
        "a.json: annotations[1]: image 2 is not described",
        "a.json: annotations[2]: category 9 is not described",
    ]


def test_a_file_that_breaks_off_is_one_problem_among_others(path):
    read(path, [image(1), image(1)], [thing(1, 5)])
    path.write_text(path.read_text()[:-90])

    problems = read_instances(path).problems

    assert len(problems) == 2  # the categories lie behind the break; nothing is said of those it has not seen
    assert "to be JSON, got: " in problems[0]
    assert problems[1] == "a.json: image 1 appears 2 times"


@pytest.mark.parametrize("streamed", [0, 1 << 24])
def test_categories_are_found_without_reading_everything(path, monkeypatch, streamed):
    monkeypatch.setattr(coco_json, "STREAMED_BYTES", streamed)
    annotations = [thing(1, random.Random(n).choice([2, 5]), note='"categories": [') for n in range(20)]
    expected = read(path, [image(1)], annotations).categories

    assert read_categories(path) == expected
    document = json.loads(path.read_text())
    path.write_text(json.dumps({"categories": document.pop("categories"), **document}, indent=2))
    assert read_categories(path) == expected


def test_wrong_categories_are_explained(path):
    read(path, [image(1)], [], [])
    with pytest.raises(InputError, match=r"to describe its categories, got 1 problem\..*\n  a\.json: no categories"):
        read_categories(path)
    read(path, [image(1)], [], [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}])
    with pytest.raises(InputError, match="category name 'a' appears 2 times"):
        read_categories(path)
    read(path, [image(1)], [], [*CATEGORIES, CATEGORIES[0], {"id": 7, "name": "a\0b"}, {"id": None, "name": None}])
    with pytest.raises(InputError) as caught:
        read_categories(path)
    assert caught.value.problems == (
        r"a.json: categories[3]: name 'a\x00b' holds the control character '\x00'",
        "a.json: categories[4]: id None is no whole number",
        "a.json: categories[4]: name None is null, no text",
        "a.json: category id 5 appears 2 times",
        "a.json: category name 'cat' appears 2 times",
    )
