"""The acceptance tests of the scene generator, on the data set as users get it."""

import hashlib
import itertools
import platform
import subprocess
import sys

import numpy as np
import pytest

from fedmlic.corpus import open_corpus
from fedmlic.dataset import DIFFICULT_ONLY, NO_OWNER
from fedmlic.datasets.scenes import scenes
from fedmlic.errors import InputError
from fedmlic.labels import PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.scenes.options import PRESETS, resolve
from fedmlic.spec import build

TINY = {"preset": "tiny", "num_images": 300, "population": 10, "num_test": 100}


def rows_of(table, split):
    return np.flatnonzero(np.array(table.splits) == split)


def same(first, second):
    """Whether two tables say the same of every image."""
    return (
        first.image_ids == second.image_ids
        and first.splits == second.splits
        and (first.labels == second.labels).all()
        and (first.owners == second.owners).all()
        and all(
            (getattr(first.objects, what) == getattr(second.objects, what)).all()
            for what in ("row", "label", "box", "area")
        )
    )


@pytest.fixture(scope="module")
def tiny():
    return scenes(**TINY)


@pytest.fixture(scope="module")
def table(tiny):
    return tiny.table()


# What is drawn, what is said


def test_a_label_is_present_exactly_where_an_object_of_it_can_be_seen(table):
    labels = np.zeros_like(table.labels)
    for row, label in zip(table.objects.row, table.objects.label, strict=True):
        labels[row, label] = PRESENT

    assert (labels == table.labels).all()
    assert (table.objects.area >= 1).all()


@pytest.mark.parametrize("level", ["coarse", "attributes"])
def test_other_levels_say_the_same_with_other_columns(tiny, table, level):
    data = scenes(**TINY, level=level)
    again = data.table()
    names = {
        "coarse": lambda label: [tiny.parents[label]],
        "attributes": lambda label: tiny.label_names[label].split(),
    }
    expected = np.zeros_like(again.labels)
    for row, label in zip(*np.nonzero(table.labels), strict=True):
        for name in names[level](label):
            expected[row, data.label_names.index(name)] = PRESENT

    assert (again.labels == expected).all()
    assert (data.images(np.arange(9)) == tiny.images(np.arange(9))).all()


def test_pixels_change_inside_the_box_of_an_object_only():
    """Against the same scene without objects: what was painted lies within the boxes, and touches their sides."""
    plain = {"noise": 0.0, "illumination": 0.0, "shadow_probability": 0.0, "style_strength": 0.0}
    knobs = {**TINY, **plain, "extra_instances": 0.0, "max_objects": 1, "cardinality": 0.8, "empty_fraction": -1}
    data, bare = scenes(**knobs), scenes(**{**knobs, "cardinality": 1e-9})
    table, count = data.table(), 0
    images, grounds = (which.images(np.arange(400)).astype(int) for which in (data, bare))

    assert bare.table().labels.sum() == 0
    for row in np.flatnonzero(np.bincount(table.objects.row, minlength=400) == 1).tolist():
        painted = np.abs(images[row] - grounds[row]).max(axis=-1) > 40
        y, x = np.nonzero(painted)
        left, top, width, height = table.objects.box[np.flatnonzero(table.objects.row == row)[0]].astype(int)
        found = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
        assert np.abs(found - [left, top, left + width, top + height]).max() <= 2
        count += 1
    assert count > 100


def test_sizes_of_splits(table):
    counts = {split: len(rows_of(table, split)) for split in ("train", "val", "test")}

    assert counts["test"] == 100
    assert counts["train"] + counts["val"] == 300
    assert 10 <= counts["val"] <= 60
    assert (table.owners[rows_of(table, "test")] == NO_OWNER).all()


# Statistics


@pytest.mark.parametrize(
    ("knobs", "empty"),
    [
        ({}, None),
        ({"preset": "voc-like"}, 0.0),
        ({"preset": "nus-like"}, 0.224),
        ({"preset": "coco-like"}, 0.01),
        ({"context_kind": "soft", "correlation": 0.9, "label_preference": 1.0}, None),
        ({"num_scene_labels": 5, "empty_fraction": 0.2}, 0.2),
    ],
)
def test_labels_have_the_wanted_frequencies(knobs, empty):
    """The images of nobody are independent: within three standard errors by default, within four everywhere."""
    count = 6000
    options = {"image_size": 64, **knobs, "num_test": count, "num_images": 200, "population": 10}
    table = scenes(**options).table()
    test = table.labels[rows_of(table, "test")] == PRESENT
    wanted = np.array(table.report["wanted_prevalence"])

    deviation = (test.mean(axis=0) - wanted) / np.sqrt(wanted * (1 - wanted) / count)

    assert np.abs(deviation).max() < (4 if knobs else 3)
    assert (deviation**2).mean() < 2
    assert abs(test.mean(axis=0).sum() - wanted.sum()) < 0.12
    if empty is not None:
        found = (~test.any(axis=1)).mean()
        assert abs(found - empty) <= 4 * np.sqrt(empty * (1 - empty) / count)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_have_the_cardinality_they_name(name):
    table = scenes(preset=name, test="iid", num_test=1500, num_images=100, population=10, num_owners=0, min_size=1)
    table = table.table()
    options = resolve(name, {})

    found = (table.labels[rows_of(table, "test")] == PRESENT)[:, : options.num_labels].sum(axis=1).mean()

    assert abs(found - options.cardinality) < 0.05 * options.cardinality + 0.1


def test_the_flair_like_world_is_like_flair():
    """Coarse labels have the published cardinality (2.8) and imbalance ratio (264); sizes are tested elsewhere."""
    table = scenes(preset="flair-like", level="coarse", num_owners=200, test="iid", num_test=4000).table()
    sizes = np.bincount(table.owners[table.owners != NO_OWNER])
    test = table.labels[rows_of(table, "test")]
    frequency = test.mean(axis=0)

    assert np.median(sizes) == 2
    assert sizes.min() == 1
    assert test.shape[1] == 17
    assert abs(test.sum(axis=1).mean() - 2.8) < 0.1
    assert 150 < frequency.max() / frequency.min() < 450


def test_more_owners_include_fewer():
    few = scenes(preset="flair-like", num_owners=20, test="iid", num_test=0).table()
    many = scenes(preset="flair-like", num_owners=60, test="iid", num_test=0).table()
    place = {image_id: row for row, image_id in enumerate(many.image_ids)}
    rows = np.array([place[image_id] for image_id in few.image_ids])

    assert len(set(few.owner_names)) == 20
    assert set(few.owner_names) < set(many.owner_names)
    assert (many.labels[rows] == few.labels).all()


# Knobs are independent


@pytest.mark.parametrize(
    "knob",
    [
        {"style_strength": 2.0},
        {"noise": 0.2},
        {"blur": 0.2},
        {"illumination": 0.9},
        {"shadow_probability": 1.0},
        {"colour_reliability": 1.0},
        {"background": "plain"},
        {"background": "photos"},
        {"background_reliability": 1.0},
        {"jpeg_quality": 30},
        {"channels": 1},
        {"num_test": 100, "unseen_style_strength": 3.0},
    ],
)
def test_how_it_looks_changes_no_annotation(table, tiny, knob):
    other = scenes(**{**TINY, **knob})

    assert same(other.table(), table)
    if "unseen_style_strength" not in knob:
        images = other.images(np.arange(8))
        assert images.shape[-1] == knob.get("channels", 3)
        assert (images != tiny.images(np.arange(8))).any()


@pytest.mark.parametrize(
    "knob",
    [
        {"context_alpha": 0.05},
        {"label_preference": 2.0},
        {"cooccurrence_rotation": 1.0},
        {"correlation": 0.0},
        {"annotated_fraction": 0.5},
        {"size_log_spread": 0.0},
    ],
)
def test_what_owners_show_changes_neither_sizes_nor_splits_nor_looks(table, tiny, knob):
    other = scenes(**TINY, **knob)
    again = other.table()
    empty = [np.flatnonzero(~(t.labels == PRESENT).any(axis=1)) for t in (table, again)]
    both = np.intersect1d(*empty)

    assert again.image_ids == table.image_ids
    assert again.splits == table.splits
    assert (again.owners == table.owners).all()
    assert len(both)
    if "context_alpha" not in knob:
        assert (other.images(both) == tiny.images(both)).all()


def test_quantity_changes_no_image_that_stays(table, tiny):
    other = scenes(**{**TINY, "owner_sizes": "constant"})
    again = other.table()
    place = {image_id: row for row, image_id in enumerate(again.image_ids)}
    shared = np.array([(row, place[name]) for row, name in enumerate(table.image_ids) if name in place]).T

    assert np.bincount(again.owners[again.owners >= 0]).tolist() == [30] * 10
    assert shared.shape[1] > 250
    assert (table.labels[shared[0]] == again.labels[shared[1]]).all()
    assert (tiny.images(shared[0][::20]) == other.images(shared[1][::20])).all()


# Determinism


def test_one_image_at_a_time_gives_the_same_bytes(tiny):
    rows = np.array([390, 3, 0, 299, 300, 17, 17])

    together = tiny.images(rows)

    assert together.dtype == np.uint8
    assert all((tiny.image(int(row)) == image).all() for row, image in zip(rows, together, strict=True))
    assert (scenes(**TINY).images(rows[::-1])[::-1] == together).all()
    assert tiny.images(rows[:0]).shape == (0, 32, 32, 3)
    everything = tiny.images(np.arange(400))
    assert (everything[rows] == together).all()


def digest_of(data):
    table = data.table()
    parts = [
        table.labels,
        table.objects.box,
        table.objects.area,
        table.objects.label,
        data.images(np.arange(0, 400, 7)),
    ]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def test_another_process_draws_the_same(tiny):
    code = (
        "import runpy, sys; from fedmlic.datasets.scenes import scenes;"
        f"m = runpy.run_path({__file__!r}); print(m['digest_of'](scenes(**m['TINY'])))"
    )

    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert output.split() == [digest_of(tiny)]


def test_any_number_of_workers_builds_the_same_corpus(tmp_path):
    data = [scenes(**TINY, num_scene_labels=3) for _ in range(2)]
    corpora = [open_corpus(d, home=tmp_path / str(n), workers=n) for d, n in zip(data, (1, 8), strict=True)]

    for file in corpora[0].path.iterdir():
        assert file.read_bytes() == (corpora[1].path / file.name).read_bytes()


def test_numpys_global_generator_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002  (the thing that must not be used)
    data = scenes(**TINY)
    data.table()
    data.images(np.arange(5))

    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_another_seed_is_another_world(table):
    other = scenes(**TINY, seed=1).table()

    assert (other.labels != table.labels).any()


def test_these_bytes_belong_to_this_version(tiny, table):
    """If this fails, the same knobs give other data: raise ``VERSION`` and say so in the changelog."""
    annotations = table.labels.tobytes() + table.objects.box.tobytes() + table.objects.area.tobytes()
    pixels = tiny.images(np.arange(400))
    means = pixels[::50].mean(axis=(1, 2, 3))

    assert tiny.version == "1"
    assert hashlib.sha256(annotations).hexdigest()[:16] == "4c96622c1bfa8eca"
    # One platform byte by byte; on others a level more or less would be no other data set.
    if platform.machine() == "x86_64" and sys.platform == "linux":
        assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "a99c3031ed59ef9c"
    assert np.abs(means - [156.26, 97.37, 105.34, 175.96, 97.57, 131.28, 88.12, 72.42]).max() < 1


# Pixels


def test_colours_of_places_tell_next_to_nothing():
    """A linear probe on 8 x 8 mean colours stays below 1.5 times the prior."""
    data = scenes(num_images=2600, num_test=800, val_fraction=0.0)
    table = data.table()
    pixels = data.images(np.arange(3400))
    means = pixels.reshape(3400, 8, 8, 8, 8, 3).mean(axis=(2, 4)).reshape(3400, -1) / 255
    truth, train, test = table.labels == PRESENT, rows_of(table, "train"), rows_of(table, "test")
    features = (means - means[train].mean(axis=0)) / means[train].std(axis=0)
    gram = features[train].T @ features[train] + 100 * np.eye(192)
    weights = np.linalg.solve(gram, features[train].T @ (truth[train] - truth[train].mean(axis=0)))

    ranked = np.take_along_axis(truth[test], np.argsort(-(features[test] @ weights), axis=0), axis=0)

    precision = np.cumsum(ranked, axis=0) / np.arange(1, len(test) + 1)[:, None]
    mean_ap = ((precision * ranked).sum(axis=0) / ranked.sum(axis=0)).mean()
    assert mean_ap < 1.5 * truth[test].mean()


def test_hue_tells_more_the_more_reliable_it_is():
    """With reliable colour the mean hue inside boxes of one label hardly varies."""

    def spread(reliability):
        plain = {"noise": 0.0, "illumination": 0.0, "shadow_probability": 0.0, "style_strength": 0.0}
        data = scenes(**TINY, **plain, colour_reliability=reliability, background="plain", cardinality=1.0, rotation=0)
        table = data.table()
        hues = []
        for row in np.flatnonzero(table.labels[:, 0] == PRESENT)[:40].tolist():
            image = data.image(row).astype(float)
            entry = np.flatnonzero((table.objects.row == row) & (table.objects.label == 0))[0]
            x, y, width, height = table.objects.box[entry].astype(int)
            centre = image[y + 2 * height // 3, x + width // 2]
            hues.append(centre - centre.mean())
        return np.std(np.array(hues), axis=0).mean()

    assert spread(1.0) < 0.8 * spread(0.0)


def test_owners_look_alike_unless_their_style_differs():
    def difference(strength):
        data = scenes(**{**TINY, "owner_sizes": "constant"}, style_strength=strength, background="plain")
        table = data.table()
        rows = np.flatnonzero(table.owners >= 0)
        means = data.images(rows).reshape(len(rows), -1).astype(float).std(axis=1)
        between = np.array([means[table.owners[rows] == owner].mean() for owner in range(10)])
        return between.std()

    assert difference(2.0) > 2 * difference(0.0)


def test_blur_and_noise_have_the_asked_strength():
    base = {**TINY, "style_strength": 0.0, "background": "plain", "illumination": 0.0, "shadow_probability": 0.0}
    empty = {**base, "cardinality": 1e-9, "empty_fraction": -1}
    clean, noisy = (scenes(**empty, noise=noise).images(np.arange(400)).astype(float) / 255 for noise in (0.0, 0.05))
    inside = (clean > 0.3) & (clean < 0.7)

    assert abs((noisy - clean)[inside].std() - 0.05) < 0.003
    sharp, soft = (scenes(**base, noise=0.0, blur=blur).images(np.arange(50)).astype(float) for blur in (0.0, 0.24))
    steps = [np.abs(np.diff(images, axis=2)).mean() for images in (sharp, soft)]
    assert steps[1] < 0.8 * steps[0]
    assert abs(sharp.mean() - soft.mean()) < 1


def test_scene_labels_change_the_picture_where_they_are_present():
    knobs = {**TINY, "num_scene_labels": 12, "scene_cardinality": 3.0}
    data, bare = scenes(**knobs), scenes(**{**knobs, "scene_cardinality": 0.0})
    table, rows = data.table(), np.arange(400)
    changed = (data.images(rows) != bare.images(rows)).reshape(400, -1).any(axis=1)
    scene = (table.labels[:, 8:] == PRESENT).any(axis=1)
    night = data.label_names.index("night")
    dark = table.labels[:, night] == PRESENT
    brightness = data.images(rows).reshape(400, -1).mean(axis=1)

    assert data.label_names[8:] == ("night", "clouds", "meadow", "rain", "sunset", "wall", *data.label_names[14:])
    # Empty images are drawn from all labels, so a few of them differ in objects too.
    assert (changed[scene]).all()
    assert brightness[dark].mean() < 0.75 * brightness[~dark].mean()


# Splits and tests


def test_owners_are_in_one_split_or_in_all():
    whole = scenes(**{**TINY, "test": "owners", "num_images": 600}).table()
    shared = scenes(**{**TINY, "test": "owners", "num_images": 600, "split_by": "image"}).table()

    owners = {split: set(whole.owners[rows_of(whole, split)].tolist()) for split in ("train", "val", "test")}
    assert all(not a & b for a, b in itertools.combinations(owners.values(), 2))
    assert all(owners.values())
    for owner in range(10):
        splits = np.array(shared.splits)[shared.owners == owner]
        assert abs((splits == "val").sum() - 0.1 * len(splits)) <= 0.5
        assert abs((splits == "test").sum() - 0.1 * len(splits)) <= 0.5
    assert whole.image_ids == shared.image_ids
    assert (whole.labels == shared.labels).all()


def test_the_balanced_test_has_no_tail():
    table = scenes(**{**TINY, "num_test": 4000, "test": "balanced", "empty_fraction": -1}).table()
    frequency = (table.labels[rows_of(table, "test")] == PRESENT).mean(axis=0)

    assert np.abs(frequency - 0.2).max() < 4 * np.sqrt(0.2 * 0.8 / 4000)


@pytest.mark.parametrize("empty_fraction", [-1, 0, 0.05])
def test_labels_of_the_independent_test_are_as_frequent_and_say_nothing_of_each_other(empty_fraction):
    knobs = {**TINY, "num_test": 4000, "empty_fraction": empty_fraction, "correlation": 0.9, "exclude": ((0, 1),)}
    shown = {}
    for test in ("iid", "independent"):
        table = scenes(**knobs, test=test).table()
        shown[test] = table.labels[rows_of(table, "test")] == PRESENT
        training = table.labels[rows_of(table, "train")]
        shown[f"{test} training"] = training

    correlation = {test: np.corrcoef(shown[test].T) - np.eye(shown[test].shape[1]) for test in ("iid", "independent")}
    assert (shown["iid training"] == shown["independent training"]).all()
    assert np.abs(shown["iid"].mean(axis=0) - shown["independent"].mean(axis=0)).max() < 0.04
    assert np.abs(correlation["iid"]).max() > 0.3
    assert np.abs(correlation["independent"]).max() < 4 / np.sqrt(4000)
    assert not (shown["iid"][:, 0] & shown["iid"][:, 1]).any()
    assert (shown["independent"][:, 0] & shown["independent"][:, 1]).any()


def test_unseen_styles_look_different_and_show_the_same_things():
    usual, unseen = (scenes(**{**TINY, "test": test}) for test in ("iid", "unseen-styles"))
    tables = [data.table() for data in (usual, unseen)]
    rows = rows_of(tables[0], "test")
    spread = [data.images(rows).astype(float).mean(axis=(1, 2)).std(axis=0).mean() for data in (usual, unseen)]

    train = rows_of(tables[0], "train")
    assert (usual.images(train[:9]) == unseen.images(train[:9])).all()
    assert spread[1] > 1.2 * spread[0]


def test_unseen_combinations_have_known_shapes_and_textures():
    knobs = {**TINY, "level": "attributes", "occlusion": False}
    usual, unseen = (scenes(**knobs, test=test) for test in ("iid", "unseen-combinations"))
    table = unseen.table()
    names = np.array(unseen.label_names)
    seen = set()
    for row in rows_of(table, "train"):
        if (table.labels[row] == PRESENT).sum() == 2:
            seen.add(tuple(names[table.labels[row] == PRESENT]))
    new = set()
    for row in rows_of(table, "test"):
        if (table.labels[row] == PRESENT).sum() == 2:
            new.add(tuple(names[table.labels[row] == PRESENT]))

    assert new
    assert not new & seen
    assert {name for pair in new for name in pair} <= {name for pair in seen for name in pair}
    assert (usual.images(np.arange(9)) == unseen.images(np.arange(9))).all()


# Annotation


def test_owners_annotate_their_columns_and_nothing_wrong(table):
    data = scenes(**TINY, annotated_fraction=0.5)
    partial = data.table()
    train, rest = rows_of(partial, "train"), np.concatenate([rows_of(partial, "val"), rows_of(partial, "test")])
    known = partial.labels != UNKNOWN

    assert (partial.labels[known] == table.labels[known]).all()
    assert known[rest].all()
    for owner in set(partial.owners[train].tolist()):
        columns = known[train][partial.owners[train] == owner]
        assert (columns == columns[0]).all()
        assert columns[0].sum() == 4
    assert (partial.labels[partial.objects.row, partial.objects.label] == PRESENT).all()


def test_owners_are_uncertain_of_what_is_mostly_covered():
    data = scenes(**TINY, uncertain_below=0.5, extra_instances=1.0)
    sure = scenes(**TINY, extra_instances=1.0).table()
    unsure = data.table()
    changed = unsure.labels != sure.labels
    train = rows_of(unsure, "train")

    assert changed[train].any()
    assert (unsure.labels[changed] == UNCERTAIN).all()
    assert (sure.labels[changed] == PRESENT).all()
    assert not np.delete(changed, train, axis=0).any()


def test_hidden_objects_can_stay_as_difficult():
    knobs = {**TINY, "extra_instances": 2.0, "min_visible": 0.6, "cardinality": 3.0, "hidden": "draw"}
    table = scenes(**knobs).table()
    removed = scenes(**{**knobs, "hidden": "remove"}).table()

    assert removed.flags is None
    assert len(table.flags.row) > 0
    assert set(table.flags.bits.tolist()) == {DIFFICULT_ONLY}
    assert (table.labels[table.flags.row, table.flags.label] == 0).all()


# Parameters


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset='big'", "Expected preset of data set|Expected preset of dataset"),
        ("num_labels=1", "greater than or equal to 2"),
        ("num_labels=10000", "less than or equal to"),
        ("num_coarse=9", r"at most the shapes in use \(7\), got 9"),
        ("cardinality=19", r"at most 15 \(max_prevalence x labels\), got 19"),
        ("cardinality=0.5, empty_fraction=0.0", "to fit cardinality 0.5, got 0: every image"),
        ("num_images=1000", "to be 1600 to 102400 .200 owners of 8 to 512 images., got 1000"),
        ("num_owners=201", r"at most population \(200\), got 201"),
        ("min_size=600", r"at most max_size \(512\), got 600"),
        ("num_images=0, owner_sizes='constant'", "1 or more with owner_sizes 'constant', got 0"),
        ("test='unseen-combinations'", "'coarse' or 'attributes' for test 'unseen-combinations'"),
        ("val_fraction=0.6, test_fraction=0.5", "below 1 together with test_fraction, got 0.6"),
        ("attract=[(0, 30, 0.5)]", r"to name labels 0 to 19, got \[30\]"),
        ("attract=[(0, 1, 0.5)], exclude=[(2, 1)]", r"got \[1\] more often"),
        ("determine=[(0, 1, 2), (2, 3, 4)]", r"got \[2\] more often"),
        ("exclude=[(0, 0)]", r"got \[0\] more often"),
        ("preset='tiny', population=1, num_images=50", r"got none left for \['val'\]"),
        ("background='photos', image_size=480", "at most 427 with photographs"),
        ("style=1", "got 'style'"),
        ("noise=float", "noise=float is not a number"),
    ],
)
def test_bad_parameters_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        build("dataset", f"scenes({text})").table()


def test_none_is_the_presets_value():
    assert scenes(preset="tiny").identity == scenes(preset="tiny", image_size=None, attract=None).identity
    assert scenes(preset="tiny", num_labels=9).label_names != scenes(preset="tiny").label_names
    assert build("dataset", "scenes(preset='tiny', exclude=[[0, 1]])").identity["exclude"] == [[0, 1]]


# Learning


@pytest.mark.slow
def test_a_small_network_learns_it(settings, tmp_path):
    """Central training of some 60,000 parameters for half a minute reaches three times the prior."""
    from fedmlic.experiment import split_settings
    from sim.run import run

    changes = {
        "dataset": "scenes(preset='tiny', num_images=3000, max_size=500, num_test=1000)",
        "regime": "complete()",
        "model": "small_cnn(width=24)",
        "method": "bce(pool='logsumexp')",
        "strategy": "fedavg()",
        "num_clients": 1,
        "cohort_size": 0,
        "num_rounds": 15,
        "learning_rate": 2e-3,
        "holdout_fraction": 0.0,
        "evaluate_every": 15,
    }
    metrics = run(*split_settings(settings(**changes)), tmp_path / "run")["metrics"]

    assert metrics["server/mAP"] > 0.6  # the prior is 0.2


@pytest.mark.slow
def test_clients_that_are_alike_learn_faster_than_owners(settings, tmp_path):
    """FedAvg on IID clients beats FedAvg on natural owners by a visible margin at ``context_alpha=0.1``."""
    from fedmlic.experiment import split_settings
    from sim.run import run

    found = {}
    for partition in ("iid()", "natural()"):
        changes = {
            "dataset": (
                "scenes(preset='tiny', num_images=3000, max_size=500, num_test=1000, population=20, "
                "val_fraction=0.0, owner_sizes='constant', context_alpha=0.1, label_preference=1.0)"
            ),
            "partition": partition,
            "regime": "complete()",
            "model": "small_cnn(width=24)",
            "method": "bce(pool='logsumexp')",
            "strategy": "fedavg()",
            "num_clients": 20,
            "cohort_size": 5,
            "num_rounds": 25,
            "local_epochs": 4,
            "learning_rate": 2e-3,
            "holdout_fraction": 0.0,
            "evaluate_every": 25,
        }
        outcome = run(*split_settings(settings(**changes)), tmp_path / partition[:3])
        found[partition] = outcome["metrics"]["server/mAP"]

    assert found["iid()"] > found["natural()"] + 0.03
