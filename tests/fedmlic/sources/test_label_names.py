import pytest

from fedmlic.errors import InputError
from fedmlic.sources.coco_counts import POSITIVES as COCO
from fedmlic.sources.label_names import ALIASES, canonical, choose_labels
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
    assert len({canonical(name) for name in names}) == 80


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
