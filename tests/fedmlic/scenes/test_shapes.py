"""Shapes, textures and their tables."""

import numpy as np
import pytest

from fedmlic.scenes import shapes, textures
from fedmlic.scenes.options import resolve
from fedmlic.scenes.vocabulary import ALIKE, MAX_LABELS, vocabulary


def grid(cells=200):
    steps = np.linspace(-1.1, 1.1, cells)
    return np.meshgrid(steps, steps)


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_every_shape_just_fits_the_unit_circle(name):
    x, y = grid()
    inside = shapes.signed_distance(name, x, y) < 0
    reach = np.hypot(x, y)[inside]

    assert 0.93 < reach.max() <= 1.0
    assert 0.4 < inside.mean() * 2.2**2 < 3.15


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_the_signed_distance_is_a_distance(name):
    """Its slope is one at most, and its size the distance to the nearest point of the other side."""
    x, y = grid(120)
    distance = shapes.signed_distance(name, x, y)
    step = x[0, 1] - x[0, 0]

    assert np.abs(np.diff(distance, axis=0)).max() <= step * 1.0001
    assert np.abs(np.diff(distance, axis=1)).max() <= step * 1.0001
    for row, column in ((3, 3), (60, 3), (110, 60), (20, 90), (60, 60), (45, 75)):
        other = (distance < 0) != (distance[row, column] < 0)
        away = np.hypot(x[other] - x[row, column], y[other] - y[row, column]).min()
        assert -1e-9 < away - abs(distance[row, column]) < 4 * step  # a grid misses the tips


def test_some_distances_by_hand():
    def at(name, x, y):
        return float(shapes.signed_distance(name, np.array(x), np.array(y)))

    assert at("disc", 0.0, 0.0) == pytest.approx(-1, abs=1e-3)
    assert at("disc", 2.0, 0.0) == pytest.approx(1, abs=1e-3)
    assert at("square", 0.0, 0.0) == pytest.approx(-(2**-0.5))
    assert at("ring", 0.0, 0.0) > 0.4
    assert at("triangle", 0.0, 0.0) == pytest.approx(-0.5)


def test_no_two_shapes_are_alike():
    inside = shapes.table() < 0

    for first in range(len(inside)):
        for second in range(first):
            either, both = (inside[first] | inside[second]).sum(), (inside[first] & inside[second]).sum()
            assert both / either < 0.93, (shapes.SHAPES[first], shapes.SHAPES[second])


def test_textures_show_both_colours_and_differ():
    table = textures.table()
    middle = table[:, 20:77, 20:77].reshape(len(table), -1)

    assert (table[0] == 0).all()
    assert ((middle[1:].mean(axis=1) > 0.15) & (middle[1:].mean(axis=1) < 0.85)).all()
    assert (np.corrcoef(middle[1:]) - np.eye(len(table) - 1) < 0.5).all()


def test_tables_are_rounded_so_that_no_machine_differs():
    for table in (shapes.table(), textures.table()):
        assert (table * shapes.ROUNDING == np.round(table * shapes.ROUNDING)).all()


@pytest.mark.parametrize("num_labels", [2, 3, 8, 20, 80, 81, 200, MAX_LABELS])
def test_neither_shape_nor_texture_gives_a_label_away(num_labels):
    words = vocabulary(resolve("small", {"num_labels": num_labels, "num_coarse": 1}))
    pairs = set(zip(words.shape.tolist(), words.texture.tolist(), strict=True))

    assert len(pairs) == num_labels == len(set(words.names))
    assert not pairs & set(zip(words.shape.tolist(), words.unseen_texture.tolist(), strict=True))
    if num_labels >= 8:
        assert all((words.shape == shape).sum() >= 2 for shape in set(words.shape.tolist()[:-8]))
        assert all((words.texture == texture).sum() >= 2 for texture in set(words.texture.tolist()))


def test_groups_are_of_similar_shapes():
    words = vocabulary(resolve("flair-like", {}))

    assert sorted(ALIKE) == sorted(shapes.SHAPES)
    assert len(set(words.parents)) == 17
    for parent, name in zip(words.parents, words.names, strict=True):
        assert name.split()[1] in parent.split("/")
    assert vocabulary(resolve("flair-like", {"level": "coarse"})).names == tuple(
        dict.fromkeys(sorted(words.parents, key=lambda parent: min(ALIKE.index(name) for name in parent.split("/"))))
    )
