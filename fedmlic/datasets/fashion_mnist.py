"""Fashion-MNIST: 70,000 grey pictures of clothes, each with one of ten labels.

Every image has exactly one present label; the others are absent. It is not what this platform is for, but many
results of federated learning are printed for it, so it gives known answers (``benchmarks/known_answers.py``).

Source: Xiao et al. 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms"
(arXiv 1708.07747).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedmlic.dataset import Dataset, Table
from fedmlic.errors import InputError
from fedmlic.files import files_sha256
from fedmlic.formats.idx import read_idx
from fedmlic.problems import Problems
from fedmlic.sources.options import HeldOut, Root, Seed
from fedmlic.sources.place import source_root
from fedmlic.sources.rows import TEST, TRAIN, Rows, hold_out_val, make_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "1"
NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
PARTS = {"train": "train", "test": "t10k"}
SIDE = 28


def fashion_mnist(
    *,
    root: Root = "/usr/share/datasets/fashion-mnist",
    image_size: Literal[28, 32] = 28,
    val_fraction: HeldOut = 0.1,
    seed: Seed = 0,
) -> Dataset:
    """Fashion-MNIST, one of ten labels per image.

    Args:
        root: folder that holds the four files, compressed or not; by default where Debian's package
            ``dataset-fashion-mnist`` puts them. ``~`` is your home.
        image_size: 28 as published, or 32 with a border of two black pixels.
        val_fraction: share of the 60,000 training images for validation.
        seed: of that random split.

    Raises:
        InputError: files are missing, damaged or contradict each other; all problems at once.
    """
    top = source_root("fashion_mnist", root, "train-images-idx3-ubyte.gz and three more files")
    files = _files(top)

    def build() -> tuple[Table, NDArray[np.uint8]]:
        pixels, numbers = _read(files)
        count = {split: len(pixels[split]) for split in PARTS}
        splits = np.repeat([TRAIN, TEST], [count["train"], count["test"]]).astype(np.int64)
        ids = [f"{split}/{number:05d}" for split in PARTS for number in range(count[split])]
        splits = hold_out_val(splits, ids, val_fraction, seed, "fashion_mnist")
        labels = np.eye(len(NAMES), dtype=np.int8)[np.concatenate([numbers[split] for split in PARTS])]
        sources = [str(files[split, "images"]) for split in PARTS for _ in range(count[split])]
        table, order = make_table(Rows(ids, splits, labels, sources), {})
        border = (image_size - SIDE) // 2
        stored = np.concatenate([pixels[split] for split in PARTS])[order]
        return table, np.pad(stored, ((0, 0), (border, border), (border, border)))[..., None]

    built = functools.cache(build)
    return Dataset(
        name="fashion_mnist",
        version=VERSION,
        identity={
            "options": [val_fraction, seed],
            "pixels": image_size,
            "files": files_sha256(top, files.values()),
        },
        label_names=NAMES,
        image_shape=(image_size, image_size, 1),
        table=lambda: built()[0],
        image=lambda row: built()[1][row],
        images=lambda rows: built()[1][rows],
        licence="MIT",
        expected={"test": 10000, "labels": 10, **({"train": 60000} if val_fraction == 0 else {})},
    )


def _files(top: Path) -> dict[tuple[str, str], Path]:
    """The four files by split and content.

    Raises:
        InputError: some are not there.
    """
    problems = Problems(f"Expected the four files of Fashion-MNIST in {top}")
    found = {}
    for split, stem in PARTS.items():
        for what, kind in (("images", "idx3"), ("labels", "idx1")):
            names = [f"{stem}-{what}-{kind}-ubyte.gz", f"{stem}-{what}-{kind}-ubyte"]
            there = [top / name for name in names if (top / name).is_file()]
            if there:
                found[split, what] = there[0]
            else:
                problems.add(f"{top / names[0]}: no such file")
    problems.finish()
    return found


def _read(files: dict[tuple[str, str], Path]) -> tuple[dict[str, NDArray[np.uint8]], dict[str, NDArray[np.int64]]]:
    """Images uint8 ``[images, 28, 28]`` and label numbers int64 ``[images]`` by split.

    Raises:
        InputError: all that is damaged or does not fit together.
    """
    problems = Problems("Expected Fashion-MNIST's files to hold images of 28 x 28 pixels and a label of each")
    pixels, numbers = {}, {}
    for split in PARTS:
        image_file, label_file = files[split, "images"], files[split, "labels"]
        try:
            pixels[split], numbers[split] = read_idx(image_file, 3), read_idx(label_file, 1).astype(np.int64)
        except InputError as error:
            problems.add(str(error))
            continue
        if pixels[split].shape[1:] != (SIDE, SIDE):
            problems.add(f"{image_file}: images of {pixels[split].shape[1:]} pixels")
        if len(pixels[split]) != len(numbers[split]):
            problems.add(f"{label_file}: {len(numbers[split])} labels for {len(pixels[split])} images")
        elif numbers[split].size and numbers[split].max() >= len(NAMES):
            problems.add(f"{label_file}: label {numbers[split].max()}, where 0 to {len(NAMES) - 1} are known")
    problems.finish()
    return pixels, numbers
