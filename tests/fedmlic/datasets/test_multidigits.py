import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.dataset import NO_OWNER, SPLITS
from fedmlic.datasets import multidigits as module
from fedmlic.datasets.multidigits import glyph_pools, glyphs, multidigits
from fedmlic.errors import InputError
from fedmlic.spec import build

SMALL = {"num_train": 200, "num_val": 20, "num_test": 40, "num_owners": 8, "image_size": 28}


def rows_of(table, split):
    return np.flatnonzero(np.array(table.splits) == split)


def plain(**changes):
    """Scenes without noise, texture or colour."""
    return multidigits(**{**SMALL, "noise": 0, "texture": 0, "colour": 0, "contrast": 0.6, **changes})


@pytest.fixture(scope="module")
def small():
    return multidigits(**SMALL)


@pytest.fixture(scope="module")
def table(small):
    return small.table()


# Glyphs


def test_the_glyphs_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits  # the slow import that the module avoids

    expected = load_digits()
    images, digits = glyphs()

    assert (expected.images == images).all()
    assert (expected.target == digits).all()


def test_reading_the_glyphs_does_not_import_scikit_learn():
    code = "from fedmlic.datasets.multidigits import glyphs; import sys; glyphs(); print('sklearn' in sys.modules)"

    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert output.split() == ["False"]


def test_other_glyphs_are_refused(monkeypatch):
    monkeypatch.setattr(module, "GLYPHS_SHA256", "0" * 64)

    with pytest.raises(InputError, match="to hold the known 1,797 digits"):
        glyphs.__wrapped__()


def test_glyphs_are_split_once_and_completely():
    pools = glyph_pools()
    numbers = {split: np.concatenate(pools[split]).tolist() for split in SPLITS}

    assert sorted([*numbers["train"], *numbers["val"], *numbers["test"]]) == list(range(1797))
    for split, share in zip(SPLITS, (4 / 6, 1 / 6, 1 / 6), strict=True):
        for digit, pool in enumerate(pools[split]):
            assert (glyphs()[1][pool] == digit).all()
            assert abs(len(pool) - share * (glyphs()[1] == digit).sum()) <= 1


def test_no_picture_of_a_glyph_is_in_two_splits():
    pictures = {split: {glyphs()[0][i].tobytes() for i in np.concatenate(glyph_pools()[split])} for split in SPLITS}

    assert not pictures["train"] & pictures["val"]
    assert not pictures["train"] & pictures["test"]
    assert not pictures["val"] & pictures["test"]


@pytest.mark.parametrize("seed", [0, 5])
def test_scenes_use_the_glyphs_of_their_split(seed):
    options = module.SimpleNamespace(**multidigits(**SMALL, seed=seed).identity)
    scenes = module._scenes(options)

    for split in SPLITS:
        some = np.array(scenes.splits) == split
        used = set(scenes.plan.glyph[some][scenes.plan.drawn[some]].tolist())
        assert used
        assert used <= set(np.concatenate(glyph_pools()[split]).tolist())
    assert (glyphs()[1][scenes.plan.glyph] == scenes.plan.label).all()


# What is drawn, what is said


def test_labels_are_exactly_the_objects(table):
    labels = np.zeros_like(table.labels)
    for row, label in zip(table.objects.row, table.objects.label, strict=True):
        labels[row, label] = 1

    assert (labels == table.labels).all()
    assert (table.labels.sum(axis=1) >= 1).all()


def test_sizes_are_as_asked(table):
    assert {split: table.splits.count(split) for split in SPLITS} == {"train": 200, "val": 20, "test": 40}
    owners = table.owners[rows_of(table, "train")]
    assert sorted(set(owners.tolist())) == list(range(8))
    assert (np.delete(table.owners, rows_of(table, "train")) == NO_OWNER).all()
    counts = np.bincount(table.objects.row, minlength=260)
    assert counts.min() >= 1
    assert counts.max() <= 4


def test_boxes_are_tight_around_the_ink_of_a_lonely_glyph():
    data = plain(max_glyphs=1)
    table, images = data.table(), data.images(np.arange(260)).astype(int)

    assert table.objects.row.tolist() == list(range(260))
    for image, box, area in zip(images, table.objects.box.astype(int), table.objects.area, strict=True):
        ground = image[0, 0]  # a glyph's square never begins in the corner pixel with ink
        ink = np.abs(image - ground).max(axis=-1) > np.abs(image - ground).max() / 2
        y, x = np.nonzero(ink)
        x0, y0, width, height = box
        found = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
        # Opacity rounds to 8 bits, so a pixel that is exactly half covered may fall either way.
        assert np.abs(found - [x0, y0, x0 + width, y0 + height]).max() <= 1
        assert abs(ink.sum() - area) <= 3


def test_visible_ink_equals_a_plain_loop():
    options = module.SimpleNamespace(**multidigits(**SMALL, min_glyphs=4, glyph_size=(0.5, 0.7)).identity)
    scenes = module._scenes(options)
    found = {}
    for row, label, area in zip(scenes.objects.row, scenes.objects.label, scenes.objects.area, strict=True):
        found.setdefault(int(row), []).append((int(label), float(area)))

    some_hidden = False
    keys = scenes.plan.key
    for row in range(0, 260, 13):
        everything = scenes.plan.take(np.array([row]))._replace(drawn=np.ones((1, 4), bool))
        covered, expected = np.zeros((28, 28), bool), []
        for slot in (3, 2, 1, 0):
            ink = module._opacity(everything, slot, 28)[0] > 0.5
            visible = [(y, x) for y, x in np.argwhere(ink).tolist() if not covered[y, x]]
            if len(visible) >= 0.6 * ink.sum():
                expected.insert(0, (int(everything.label[0, slot]), float(len(visible))))
                covered |= ink
            else:
                some_hidden = True
        assert expected == found[row]
    assert some_hidden
    assert len(set(keys.tolist())) == 260


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 99),
    low=st.floats(0.3, 0.6),
    spread=st.floats(0, 0.4),
    rotation=st.floats(0, 45),
    max_glyphs=st.integers(1, 10),
    image_size=st.integers(28, 50),
)
def test_boxes_lie_inside_and_contain_their_area(seed, low, spread, rotation, max_glyphs, image_size):
    options = {"rotation": rotation, "max_glyphs": max_glyphs, "image_size": image_size, "seed": seed}
    data = multidigits(num_train=12, num_val=0, num_test=0, num_owners=3, glyph_size=(low, low + spread), **options)
    objects = data.table().objects
    x, y, width, height = objects.box.T

    assert (np.minimum(x, y) >= 0).all()
    assert (np.maximum(x + width, y + height) <= image_size).all()
    assert (objects.area >= 1).all()
    assert (objects.area <= width * height).all()


def test_labels_of_a_scene_differ_unless_they_repeat():
    distinct = multidigits(**SMALL, max_glyphs=4, repeat_probability=0).table()
    repeated = multidigits(**SMALL, max_glyphs=4, repeat_probability=0.95).table()

    assert (distinct.labels.sum(axis=1) == np.bincount(distinct.objects.row, minlength=260)).all()
    assert repeated.labels.sum(axis=1).mean() < 1.3
    assert np.bincount(repeated.objects.row).mean() > 2


def test_a_scene_may_be_empty():
    table = multidigits(**SMALL, min_glyphs=0, max_glyphs=1).table()

    assert 60 < (table.labels.sum(axis=1) == 0).sum() < 200


def test_pixels_can_be_recognised_and_colour_cannot():
    """Nearest neighbours among glyphs find most lonely digits; mean colours find next to none."""
    data = plain(max_glyphs=1, num_train=600, glyph_size=(0.9, 0.9), rotation=0, noise=0.02)
    table, images = data.table(), data.images(np.arange(660)).astype(np.float64) / 255
    train, test = rows_of(table, "train"), rows_of(table, "test")
    truth = table.labels.argmax(axis=1)

    def accuracy(features):
        distances = ((features[test][:, None] - features[train][None]) ** 2).sum(axis=-1)
        return (truth[train][distances.argmin(axis=1)] == truth[test]).mean()

    ground = images[:, :1, :1]
    assert accuracy(np.abs(images - ground).mean(axis=-1).reshape(660, -1)) > 0.7
    assert accuracy(images[:, 0, 0]) < 0.35


# Contexts and owners


def test_every_context_prefers_its_labels_and_every_label_is_preferred():
    options = module.SimpleNamespace(**multidigits().identity)
    weights = module._context_weights(options)

    assert np.allclose(weights.sum(axis=1), 1)
    favoured = weights > 0.1
    assert favoured.sum(axis=1).tolist() == [4] * 5
    assert favoured.sum(axis=0).tolist() == [2] * 10
    assert np.allclose(weights[favoured], 0.04 + 0.15)


def test_labels_follow_the_weights():
    """The first label of a scene has its context's frequencies, within four standard errors."""
    rng = np.random.default_rng(0)
    weights = np.array([0.5, 0.3, 0.15, 0.05] + [0.0] * 6)
    uniforms = rng.random((20000, 2))

    chosen = module.pick_labels(np.tile(weights, (20000, 1)), uniforms, np.ones((20000, 2, 2)), 0)

    first = np.bincount(chosen[:, 0], minlength=10) / 20000
    second_after_0 = np.bincount(chosen[chosen[:, 0] == 0, 1], minlength=10) / (chosen[:, 0] == 0).sum()
    assert np.abs(first - weights).max() < 4 * 0.5 / np.sqrt(20000)
    assert np.abs(second_after_0[1:4] - [0.6, 0.3, 0.1]).max() < 4 * 0.5 / np.sqrt(10000)
    assert second_after_0[0] == 0


def spread_between_owners(**changes):
    options = {"num_train": 4000, "num_val": 0, "num_test": 0, "num_owners": 10, "owner_spread": 0, "image_size": 24}
    table = multidigits(**{**options, **changes}).table()
    return np.std([table.labels[table.owners == owner].mean(axis=0) for owner in range(10)], axis=0).mean()


def test_small_alpha_makes_owners_differ():
    """Sampling alone spreads a prevalence near 0.23 over 400 images by about 0.02."""
    assert spread_between_owners(context_alpha=1e6) < 0.03
    assert spread_between_owners(context_alpha=0.05, context_strength=0) < 0.03
    assert spread_between_owners(context_alpha=0.05) > 0.06


def test_contexts_make_labels_co_occur():
    def largest_correlation(strength):
        options = {"num_train": 3000, "num_contexts": 2, "context_labels": 2, "context_strength": strength}
        labels = multidigits(**options, image_size=24, num_val=0, num_test=0).table().labels
        return (np.corrcoef(labels.T) - 2 * np.eye(10)).max()

    assert largest_correlation(0.8) > 0.1
    assert largest_correlation(0) < 0.07


@given(
    num_owners=st.integers(1, 50),
    spare=st.integers(0, 500),
    spread=st.floats(0, 3),
    seed=st.integers(0, 99),
)
def test_owner_sizes_add_up(num_owners, spare, spread, seed):
    sizes = module.owner_sizes(np.random.default_rng(seed), num_owners, num_owners + spare, spread)

    assert sizes.sum() == num_owners + spare
    assert sizes.min() >= 1
    if spread == 0:
        assert sizes.max() - sizes.min() <= 1


# A pure function


def test_one_image_at_a_time_gives_the_same_bytes(small):
    rows = np.array([250, 3, 0, 199, 200])

    together = small.images(rows)

    assert all((small.image(int(row)) == image).all() for row, image in zip(rows, together, strict=True))
    assert (multidigits(**SMALL).images(rows[::-1])[::-1] == together).all()
    assert small.images(rows[:0]).shape == (0, 28, 28, 3)


def test_scenes_do_not_depend_on_how_many_others_there_are(small, table):
    other = multidigits(**{**SMALL, "num_val": 7, "num_test": 90})
    again = other.table()
    place = {image_id: row for row, image_id in enumerate(again.image_ids)}
    shared = [(row, place[name]) for row, name in enumerate(table.image_ids) if name in place]
    ours, theirs = np.array(shared).T

    assert len(shared) == 200 + 7 + 40
    assert (table.labels[ours] == again.labels[theirs]).all()
    assert (small.images(ours[::9]) == other.images(theirs[::9])).all()


@pytest.mark.parametrize("knob", [{"noise": 0.3}, {"contrast": 0.9}, {"texture": 0}, {"colour": 1}])
def test_how_it_looks_changes_no_annotation(table, knob):
    other = multidigits(**SMALL, **knob)
    again = other.table()

    assert (table.labels == again.labels).all()
    assert (table.objects.box == again.objects.box).all()
    assert (other.images(np.arange(5)) != multidigits(**SMALL).images(np.arange(5))).any()


def test_another_seed_is_other_scenes(table):
    assert (multidigits(**SMALL, seed=1).table().labels != table.labels).any()


def test_noise_has_the_asked_strength():
    clean, noisy = plain(max_glyphs=1, contrast=0.1), plain(max_glyphs=1, contrast=0.1, noise=0.1)
    difference = (noisy.images(np.arange(260)).astype(float) - clean.images(np.arange(260))) / 255

    assert abs(difference.std() - 0.1) < 0.002
    assert abs(difference.mean()) < 0.002


def test_these_bytes_belong_to_this_version(small, table):
    """If this fails, the same parameters give other data: raise ``VERSION`` and say so in the changelog."""
    annotations = table.labels.tobytes() + table.objects.box.tobytes()
    pixels = small.images(np.arange(260)).tobytes()

    assert small.version == "1"
    assert hashlib.sha256(annotations).hexdigest()[:16] == "48068a203ba69146"
    assert hashlib.sha256(pixels).hexdigest()[:16] == "42600c6624b4fcff"


# Parameters


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("glyph_size=(0.1, 0.5)", "at least 0.25 .8 of 32 pixels"),
        ("glyph_size=(0.6, 0.5)", r"got \(0.6, 0.5\)"),
        ("glyph_size=(0.5, 1.5)", "less than or equal to 1"),
        ("min_glyphs=5", "at most max_glyphs .4., got 5"),
        ("num_train=50", "at most num_train .50., got 100"),
        ("max_glyphs=11", "less than or equal to 10, got 11"),
        ("noise=-1", "greater than or equal to 0, got -1"),
        ("context_strength=1", "less than or equal to 0.95"),
        ("seed=-1", "greater than or equal to 0"),
        ("size=32", "got 'size'"),
    ],
)
def test_bad_parameters_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        build("dataset", f"multidigits({text})")
