import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmlic.errors import InputError
from fedmlic.sources.coco_counts import POSITIVES as COCO
from fedmlic.sources.label_names import (
    ALIASES,
    check_names,
    choose_labels,
    composed,
    joined_names,
    look_alike,
    plain_name,
    similar_names,
)
from fedmlic.sources.voc import LABEL_NAMES as VOC
from fedmlic.sources.voc_counts import POSITIVES as VOC_COUNTS


def test_every_voc_label_is_one_of_coco():
    places = choose_labels(VOC, list(COCO), "coco2017")

    assert [list(COCO)[place] for place in places] == [ALIASES.get(name, name) for name in VOC]
    assert list(VOC_COUNTS) == list(VOC)


def test_every_spelling_finds_its_label():
    names = list(COCO)

    assert choose_labels([name.replace(" ", "_") for name in names], names, "x") == list(range(80))
    assert choose_labels(["Hot  Dog"], names, "x") == [names.index("hot dog")]
    assert choose_labels(None, names, "x") == list(range(80))
    assert len({plain_name(name) for name in names}) == 80


def test_an_exact_name_goes_first():
    assert choose_labels(["hot_dog"], ["hot dog", "hot_dog"], "x") == [1]


def test_all_wrong_names_at_once():
    with pytest.raises(InputError) as caught:
        choose_labels(["sofa", "couch", "pottedflant"], VOC, "voc2007")

    assert str(caught.value).splitlines()[1:] == [
        "  'sofa': chosen 2 times",
        "  'couch': chosen 2 times",
        "  'pottedflant': Did you mean 'pottedplant'?",
    ]
    with pytest.raises(InputError, match="no names at all"):
        choose_labels([], VOC, "voc2007")


@given(st.text())
def test_every_form_of_a_name_is_the_same_name(name):
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]

    assert len({composed(form) for form in forms}) == 1
    assert len({look_alike(form) for form in forms}) == 1
    assert composed(composed(name)) == composed(name)


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        ("Kreis", "kreis", True),
        ("hot dog", "Hot_Dog", True),
        ("hotdog", "hot-dog", True),
        ("a\u00a0b", "a  b", True),
        ("\uff211", "a 1", True),
        ("cat\u200b", "cat", True),
        ("1 1", "11", False),
        ("T-1", "T1", False),
        ("level -1", "level 1", False),
        ("résumé", "resume", False),
        ("Maße", "Masse", False),
        ("A", "A-", False),
    ],
)
def test_what_looks_alike(first, second, alike):
    assert similar_names([first, second, "other"]) == ([sorted([first, second])] if alike else [])


def test_several_labels_in_one():
    assert joined_names(["a", "b", "a, b", "b|a", "coat, jacket"], divided=True) == {"a, b": ",", "b|a": "|"}
    assert joined_names(["coat, jacket", "hat"], divided=True) == {}
    assert joined_names(["coat, jacket", "hat", "x;"], divided=False) == {"coat, jacket": ","}


def test_unclear_names_are_refused_all_at_once():
    with pytest.raises(InputError, match="got 3 problems") as caught:
        check_names(["Kreis", "kreis", "a", "a, b", "NaN"], "labels.csv", separable="separator")

    text = str(caught.value)
    assert "labels of labels.csv to be clear (label_names=[...]" in text
    assert "'Kreis', 'kreis' differ only in case" in text
    assert "'a, b' looks like several labels with ',' between them; separator=',' divides it" in text
    assert "'NaN' is how an empty cell is written" in text
    for blank in ("", " ", "\u200b", "\u3000\ufeff"):
        with pytest.raises(InputError, match="is blank: leave it out"):
            check_names([blank, "cat"], "labels.csv")
    check_names(COCO, "coco2017")
    check_names(VOC, "voc2012")
