"""Feature maps computed ahead of a run."""

from contextlib import nullcontext

import pytest

from fedmlic.errors import InputError
from sim.data.features import compute
from sim.data.verify import verify

FROZEN = "resnet(depth=18, trainable='head')"
SMALL = "multidigits(num_train=12, num_val=0, num_test=4, image_size=24, num_owners=3)"


def watching(told):
    return lambda what: nullcontext(lambda done, total: told.append((what, done, total)))


def test_maps_are_computed_ahead_and_found_again(tiny, tmp_path):
    settings = tiny(model=FROZEN, dataset=SMALL, home=str(tmp_path))
    told = []

    first = compute(*settings, watching(told))
    assert told[-1] == ("computing features", 16, 16)
    again = compute(*settings, watching(told := []))

    assert first == again
    assert told == []
    assert first["shape"] == [16, 512, 1, 1]
    assert first["bytes"] > 16 * 512 * 4
    assert first["computed"] == 16
    assert verify(tmp_path / "features" / first["key"])["ok"]


@pytest.mark.parametrize("text", ["etf()", "shuffled(of='random_orthogonal()')"])
def test_images_with_one_label_have_the_maps_of_a_run_with_many(tiny, tmp_path, text):
    common = {"model": FROZEN, "dataset": SMALL, "home": str(tmp_path)}
    method = f"fedlgt(layers=1, width=32, text={text!r})"

    found = compute(*tiny(method=method, label_names="cat", **common), watching([]))

    assert found == compute(*tiny(method=method, **common), watching([]))


def test_another_reason_is_told_as_it_is_for_the_label_that_is_there(tiny, tmp_path):
    (tmp_path / "vectors.json").write_text('{"dog": [1.0, 2.0]}')
    text = f"file(path='{tmp_path}/vectors.json')"
    method = f"fedlgt(layers=1, width=32, text={text!r})"

    with pytest.raises(InputError, match=r"each of 1 names, got none for 1 \(cat\)"):
        compute(*tiny(method=method, label_names="cat", model=FROZEN, dataset=SMALL, home=str(tmp_path)), watching([]))


def test_a_method_that_freezes_its_backbone_has_the_maps_of_a_model_that_would_train(tiny, tmp_path):
    method = "hp_dval(weights='random', schedule='prompts')"
    settings = tiny(model="small_cnn(width=4, num_blocks=0)", method=method, dataset=SMALL, home=str(tmp_path))

    found = compute(*settings, watching([]))

    assert found["computed"] == 16
    assert found["shape"][0] == 16


def test_a_model_that_trains_is_refused_before_images_are_read(tiny, tmp_path):
    with pytest.raises(InputError, match=r"tensors of model small_cnn.*trainable='head'"):
        compute(*tiny(dataset=SMALL, home=str(tmp_path)), watching([]))

    assert not list(tmp_path.iterdir())
