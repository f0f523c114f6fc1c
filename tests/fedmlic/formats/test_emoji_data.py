import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmlic.errors import InputError
from fedmlic.formats.emoji_data import code_of, read_emoji_data

ENTRY = {"name": "HOT PEPPER", "unified": "1F336-FE0F", "category": "Food & Drink", "subcategory": "food-vegetable"}


def written(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_fields_are_read(tmp_path):
    more = {**ENTRY, "unified": "0023-FE0F-20E3", "name": None, "image": "x.png", "skin_variations": {}}

    first, second = read_emoji_data(written(tmp_path / "emoji.json", [ENTRY, more]))

    assert first == ("1f336", "hot pepper", "Food & Drink", "food-vegetable")
    assert second[:2] == ("23-20e3", "")


@given(st.lists(st.integers(1, 0x10FFFF).filter(lambda point: point != 0xFE0F), min_size=1, max_size=6))
def test_names_of_all_vendors_have_one_code(points):
    twemoji = "-".join(f"{point:x}" for point in points)
    openmoji = "-FE0F-".join(f"{point:04X}" for point in points)
    noto = "emoji_u" + "_".join(f"{point:04x}" for point in points)

    assert {code_of(twemoji), code_of(openmoji), code_of(noto)} == {twemoji}


@pytest.mark.parametrize("name", ["", "readme", "1f336-", "-1f336", "1f336 2", "1234567", "1f336\n", "\u0661"])
def test_other_names_have_none(name):
    assert code_of(name) == ""


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        [1],
        [{**ENTRY, "unified": None}],
        [{**ENTRY, "unified": "hot"}],
        [{**ENTRY, "subcategory": 3}],
        [{"unified": "1F336"}],
    ],
)
def test_other_content_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"emoji\.json to list emoji"):
        read_emoji_data(written(tmp_path / "emoji.json", content))


def test_an_emoji_is_there_once(tmp_path):
    with pytest.raises(InputError, match="entry 1: 1f336 a second time"):
        read_emoji_data(written(tmp_path / "emoji.json", [ENTRY, {**ENTRY, "unified": "1F336"}]))
