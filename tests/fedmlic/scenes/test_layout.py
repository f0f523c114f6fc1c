"""Places, masks and what of them is visible, against plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.scenes import shapes
from fedmlic.scenes.layout import Layout, layout
from fedmlic.scenes.options import resolve
from fedmlic.scenes.patches import patches
from fedmlic.scenes.visibility import visibility
from fedmlic.scenes.world import world
from fedmlic.seeds import stream


def some_objects(seed, count, image_size=48, num_rows=1):
    rng = np.random.default_rng(seed)
    radius = rng.uniform(4, 0.42 * image_size, count).astype(np.float32)
    x, y = ((radius + 0.5 + rng.random(count) * (image_size - 2 * radius - 1)).astype(np.float32) for _ in range(2))
    row = np.sort(rng.integers(0, num_rows, count))
    tilt = rng.uniform(-0.3, 0.3, count).astype(np.float32)
    return Layout(
        row, np.arange(count), rng.integers(0, 99, count).astype(np.uint64), radius, tilt, x, y
    ), rng.integers(0, len(shapes.SHAPES), count)


def mask_by_definition(objects, number, shape, image_size):
    """bool ``[height, width]`` from the signed distance itself, not from its table; and how close each pixel is."""
    angle = 2 * np.arctan(objects.tilt[number])
    y, x = np.mgrid[:image_size, :image_size] + 0.5
    dx, dy = (x - objects.x[number]) / objects.radius[number], (y - objects.y[number]) / objects.radius[number]
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    distance = shapes.signed_distance(shapes.SHAPES[shape], u, v) * objects.radius[number]
    return distance < 0, distance


@pytest.mark.parametrize("seed", range(4))
def test_patches_hold_the_shape(seed):
    objects, shape = some_objects(seed, 12)
    done = []
    for patch in patches(objects, shape, 48):
        side = patch.distance.shape[1]
        for place, number in enumerate(patch.objects.tolist()):
            inside, distance = mask_by_definition(objects, number, shape[number], 48)
            box = np.s_[patch.top[place] : patch.top[place] + side, patch.left[place] : patch.left[place] + side]
            near = np.abs(distance[box]) < 0.7
            # Two cells of a table of 96 over 2.4 radii: corners are a little rounder than they should be.
            assert np.abs(patch.distance[place] - distance[box])[near].max() < 0.03 * objects.radius[number]
            outside = inside.copy()
            outside[box] = False
            assert not outside.any()
            done.append(number)
    assert sorted(done) == list(range(12))


def visible_by_loops(masks, options):
    """From the front to the back, one object and one pixel after another."""
    covered = np.zeros_like(masks[0])
    found = {}
    for number in reversed(range(len(masks))):
        shown = [(y, x) for y, x in np.argwhere(masks[number]).tolist() if not covered[y, x]]
        total = int(masks[number].sum())
        counts = len(shown) >= options.min_visible * total and len(shown) >= min(options.min_pixels, total) > 0
        if counts:
            ys, xs = [y for y, _ in shown], [x for _, x in shown]
            found[number] = (len(shown), [min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1])
        if counts or options.hidden == "draw":
            covered |= masks[number]
    return found


@pytest.mark.parametrize("hidden", ["remove", "draw"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 9), min_visible=st.sampled_from([0.1, 0.25, 0.6]))
def test_visibility_equals_plain_loops(hidden, seed, count, min_visible):
    options = resolve("small", {"image_size": 48, "min_visible": min_visible, "hidden": hidden})
    objects, shape = some_objects(seed, count)
    masks = [np.zeros((48, 48), bool) for _ in range(count)]
    for patch in patches(objects, shape, 48):
        side = patch.distance.shape[1]
        for place, number in enumerate(patch.objects.tolist()):
            top, left = patch.top[place], patch.left[place]
            masks[number][top : top + side, left : left + side] = patch.distance[place] < 0

    found = visibility(options, objects, shape, 1)

    expected = visible_by_loops(masks, options)
    assert np.flatnonzero(found.seen).tolist() == sorted(expected)
    assert found.total.tolist() == [int(mask.sum()) for mask in masks]
    for number, (area, box) in expected.items():
        assert found.area[number] == area
        assert found.box[number].tolist() == box


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 8))
def test_one_more_object_in_front_hides_and_never_uncovers(seed, count):
    options = resolve("small", {"image_size": 48, "hidden": "draw"})
    objects, shape = some_objects(seed, count)
    fewer = objects.take(np.arange(count - 1))

    before, after = visibility(options, fewer, shape[:-1], 1), visibility(options, objects, shape, 1)

    assert (after.area[:-1] <= before.area).all()
    assert (after.total[:-1] == before.total).all()
    assert after.area[-1] == after.total[-1]


def test_rows_do_not_cover_one_another():
    options = resolve("small", {"image_size": 48})
    objects, shape = some_objects(3, 8, num_rows=4)
    together = visibility(options, objects, shape, 4)

    for row in range(4):
        some = objects.row == row
        alone = visibility(options, objects.take(some)._replace(row=np.zeros(some.sum(), int)), shape[some], 1)
        assert (alone.area == together.area[some]).all()
        assert (alone.box == together.box[some]).all()


# Layout


def keys(count):
    return stream(0, "test/keys").integers(0, 1 << 60, count).astype(np.uint64)


def test_counts_are_one_plus_poisson():
    options = resolve("small", {"extra_instances": 0.5, "max_objects": 100})
    present = np.zeros((6000, 20), dtype=bool)
    present[:, 3] = True

    count = np.bincount(layout(options, keys(6000), np.zeros(6000, int), present).row, minlength=6000) - 1

    assert abs(count.mean() - 0.5) < 4 * np.sqrt(0.5 / 6000)
    assert abs(count.var() - 0.5) < 0.06


def test_too_many_objects_cost_further_instances_first():
    options = resolve("small", {"extra_instances": 4.0, "max_objects": 6})
    present = stream(0, "test/present").random((500, 20)) < 0.3
    objects = layout(options, keys(500), np.zeros(500, int), present)

    shown = np.zeros_like(present)
    shown[objects.row, objects.concept] = True
    assert (shown == present).all()
    assert (np.bincount(objects.row, minlength=500) <= np.maximum(6, present.sum(axis=1))).all()


def test_sizes_have_the_asked_distribution():
    options = resolve("small", {"size_log_mean": -1.5, "size_log_spread": 0.25, "image_size": 256})
    present = np.zeros((4000, 20), dtype=bool)
    present[:, 5] = True
    objects = layout(options, keys(4000), np.zeros(4000, int), present)
    logs = np.log(objects.radius / 256)

    own = 0.15 * stream(options.seed, "scenes/label sizes").standard_normal(20)[5]
    assert abs(np.median(logs) - (-1.5 + own)) < 0.03
    assert abs(np.diff(np.quantile(logs, [0.25, 0.75]))[0] - 2 * 0.6745 * 0.25) < 0.03


def test_labels_keep_to_their_places():
    options = resolve("small", {"num_labels": 20})
    prior = stream(options.seed, "scenes/priors").integers(0, 4, 20)
    present = np.ones((300, 20), dtype=bool)
    objects = layout(options, keys(300), np.arange(300) % 8, present)
    free = layout(resolve("small", {"location_prior": False}), keys(300), np.arange(300) % 8, present)
    height = [np.mean(objects.y[prior[objects.concept] == kind]) / 64 for kind in range(4)]

    assert set(prior.tolist()) == {0, 1, 2, 3}
    assert height[2] < 0.4 < height[3] < 0.6 < height[1]
    assert abs(np.mean(free.y) / 64 - 0.5) < 0.01
    for found in (objects, free):
        assert (found.x - found.radius >= 0).all()
        assert (found.x + found.radius <= 64).all()
        assert (found.y - found.radius >= 0).all()
        assert (found.y + found.radius <= 64).all()


def test_an_objects_numbers_do_not_depend_on_what_else_is_there():
    options = resolve("small", {})
    alone = np.zeros((50, 20), dtype=bool)
    alone[:, 7] = True
    crowd = alone.copy()
    crowd[:, [1, 12]] = True
    first, second = (layout(options, keys(50), np.zeros(50, int), present) for present in (alone, crowd))
    seen = {int(key): place for place, key in enumerate(second.key)}
    places = np.array([seen[int(key)] for key in first.key])

    for what in ("radius", "tilt", "x", "y"):
        assert (getattr(first, what) == getattr(second, what)[places]).all()


def test_without_occlusion_nearly_everything_is_open():
    knobs = {"num_images": 1600, "num_test": 0, "size_log_mean": -2.2}
    apart, over = (world(resolve("small", {**knobs, "occlusion": occlusion})).visibility for occlusion in (False, True))

    assert (apart.area == apart.total).mean() > 0.95
    assert (over.area == over.total).mean() < 0.9


def test_hardly_any_label_is_lost_to_occlusion():
    found = world(resolve("small", {"num_images": 1600, "num_test": 0}))

    assert (found.shown <= found.wanted).all()
    assert (found.wanted & ~found.shown).sum() < 0.003 * found.wanted.sum()
