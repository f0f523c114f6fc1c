"""Fashion-MNIST: pixels and labels of the files, and everything wrong at once."""

import gzip
import runpy
from pathlib import Path

import numpy as np
import pytest

from fedmlic.datasets.fashion_mnist import NAMES, fashion_mnist
from fedmlic.errors import InputError
from fedmlic.formats.idx import read_idx
from fedmlic.spec import build

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "fashion_mnist.py"))
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def test_every_image_has_its_own_pixels_and_one_label(tmp_path):
    data = build("dataset", FIXTURE["write"](tmp_path))
    table = data.table()

    assert data.label_names == NAMES
    assert (table.labels.sum(axis=1) == 1).all()
    for row, image_id in enumerate(table.image_ids):
        split, number = image_id.split("/")
        images, labels = FIXTURE["arrays"](12 if split == "train" else 6, 0 if split == "train" else 1)
        assert np.array_equal(data.image(row)[..., 0], images[int(number)])
        assert table.labels[row].argmax() == labels[int(number)]
        assert (table.splits[row] == "test") == (split == "test")
    assert table.splits.count("val") == 3


def test_a_border_makes_32_pixels(tmp_path):
    FIXTURE["write"](tmp_path)
    small, large = (fashion_mnist(root=str(tmp_path), image_size=size) for size in (28, 32))

    small.table()
    large.table()
    assert np.array_equal(np.pad(small.image(3), ((2, 2), (2, 2), (0, 0))), large.image(3))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte.gz", b"no gzip", "compressed with gzip"),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"\x00\x00\x08\x01", mtime=0), "begin with the bytes"),
        ("t10k-images-idx3-ubyte", b"", "begin with the bytes"),
        ("t10k-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x07\1\2\3", "to hold 7 values"),
        ("t10k-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x01\1", "1 labels for 6 images"),
        ("t10k-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x06\1\1\1\1\1\x0a", "label 10, where 0 to 9"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    spec = FIXTURE["write"](tmp_path)
    (tmp_path / name).write_bytes(content)

    with pytest.raises(InputError, match=message) as caught:
        build("dataset", spec).table()

    assert name in str(caught.value)


def test_all_missing_files_are_named_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        fashion_mnist(root=str(tmp_path))

    assert len(caught.value.problems) == 4


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_published_files():
    images = read_idx(DEBIAN / "t10k-images-idx3-ubyte.gz", 3)
    labels = read_idx(DEBIAN / "t10k-labels-idx1-ubyte.gz", 1)

    assert images.shape == (10000, 28, 28)
    assert np.bincount(labels).tolist() == [1000] * 10
