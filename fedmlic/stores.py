"""Pixels and label matrices as files: written once, opened by every process that reads them.

Both are read by rows and return ordinary arrays. Both pickle as a path: each process
maps the files itself, so nothing large travels to a worker.
"""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fedmlic.errors import InputError
from fedmlic.labels import STATES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

MAX_DENSE_LABELS = 256
"""Label matrices with more columns than this are stored as CSR."""

JPEG_QUALITY = 95
"""Quality of stored images where the raw pixels would exceed the budget."""


class Images:
    """Stored images, opened when first read.

    Pickling carries the path, never the pixels: each process maps the file itself.

    Args:
        folder: a corpus folder.
        shape: images, height, width, channels.
        storage: ``"raw"`` or ``"jpeg"``.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int, int], storage: str) -> None:
        self.folder = folder
        self.shape = shape
        self.storage = storage
        self._pixels: NDArray[np.uint8] | None = None
        self._offsets: NDArray[np.int64] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the open maps."""
        return {**self.__dict__, "_pixels": None, "_offsets": None}

    def __len__(self) -> int:
        """How many images there are."""
        return self.shape[0]

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 ``[rows, height, width, channels]``: a contiguous copy, in the order asked."""
        if self.storage == "raw":
            return self._take_raw(np.asarray(rows, dtype=np.int64))
        return self._take_jpeg(np.asarray(rows, dtype=np.int64))

    def _take_raw(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self._pixels is None:
            self._pixels = np.load(self.folder / "images.u8.npy", mmap_mode="r")
        # The copy is an ordinary array: a subclass that remembers the map would be pickled whole.
        return np.asarray(self._pixels)[rows]

    def _take_jpeg(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self._pixels is None:
            self._pixels = np.memmap(self.folder / "images.blob", dtype=np.uint8, mode="r")
        if self._offsets is None:
            self._offsets = np.load(self.folder / "images.offsets.npy")
        out = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        for place, row in enumerate(rows.tolist()):
            data = self._pixels[self._offsets[row] : self._offsets[row + 1]].tobytes()
            out[place] = _decode_jpeg(data).reshape(self.shape[1:])
        return out


def encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    """uint8 ``[height, width, 3 or 1]`` as a JPEG file without colour subsampling."""
    from PIL import Image  # only large corpora need it

    buffer = BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(BytesIO(data), formats=["JPEG"]) as picture:
        return np.asarray(picture, dtype=np.uint8)


class LabelStore:
    """A stored label matrix, dense or compressed, opened when first read.

    Args:
        folder: where it lies.
        stem: beginning of its file names.
        shape: images, labels.
        fill: the state that is not stored, or ``None`` for a dense matrix.
    """

    def __init__(self, folder: Path, stem: str, shape: tuple[int, int], fill: int | None) -> None:
        self.folder = folder
        self.stem = stem
        self.shape = shape
        self.fill = fill
        self._arrays: dict[str, NDArray[Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the open maps."""
        return {**self.__dict__, "_arrays": {}}

    def __len__(self) -> int:
        """How many images there are."""
        return self.shape[0]

    @property
    def num_labels(self) -> int:
        """How many labels there are."""
        return self.shape[1]

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.int8]:
        """int8 ``[rows, labels]``: a contiguous copy, in the order asked."""
        rows = np.asarray(rows, dtype=np.int64)
        if self.fill is None:
            return cast("NDArray[np.int8]", self._array("i8")[rows])
        indptr = self._array("indptr")
        starts = indptr[rows]
        counts = indptr[rows + 1] - starts
        entries = _ranges(starts, counts)
        out = np.full((len(rows), self.num_labels), self.fill, dtype=np.int8)
        out[np.repeat(np.arange(len(rows)), counts), self._array("indices")[entries]] = self._array("values")[entries]
        return out

    def _array(self, part: str) -> NDArray[Any]:
        if part not in self._arrays:
            mapped = np.load(self.folder / f"{self.stem}.{part}.npy", mmap_mode="r")
            self._arrays[part] = np.asarray(mapped)
        return self._arrays[part]


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``start, start + 1, ...`` of every run, one after another."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(counts.sum())


def write_labels(
    folder: Path,
    stem: str,
    labels: NDArray[np.int8] | Iterable[NDArray[np.int8]],
    num_labels: int,
    *,
    max_dense_labels: int = MAX_DENSE_LABELS,
) -> list[str]:
    """Write a label matrix, whole or in blocks of rows, and name the files written.

    Matrices with at most ``max_dense_labels`` columns are stored dense; wider ones as CSR
    around their commonest state (of the first block), whichever that is.

    Args:
        folder: an existing folder.
        stem: beginning of the file names.
        labels: int8 ``[images, labels]``, or such blocks in order.
        num_labels: columns.
        max_dense_labels: when to compress.
    """
    blocks = iter([labels] if isinstance(labels, np.ndarray) else labels)
    fill: int | None = None
    if num_labels <= max_dense_labels:
        arrays = {"i8": np.concatenate([np.empty((0, num_labels), np.int8), *blocks])}
        num_images = len(arrays["i8"])
    else:
        fill, arrays = _compress(blocks, num_labels)
        num_images = len(arrays["indptr"]) - 1
    for part, array in arrays.items():
        np.save(folder / f"{stem}.{part}.npy", array, allow_pickle=False)
    about = {"shape": [num_images, num_labels], "fill": fill, "states": STATES}
    (folder / f"{stem}.json").write_text(json.dumps(about), encoding="utf-8")
    return [f"{stem}.json", *(f"{stem}.{part}.npy" for part in arrays)]


def _compress(blocks: Iterator[NDArray[np.int8]], num_labels: int) -> tuple[int, dict[str, NDArray[Any]]]:
    """The fill state, and CSR arrays ``indptr``, ``indices`` and ``values`` of everything else."""
    index_type = np.uint16 if num_labels <= 1 << 16 else np.uint32
    fill: int | None = None
    counts, indices, values = [np.zeros(1, np.int64)], [np.empty(0, index_type)], [np.empty(0, np.int8)]
    for block in blocks:
        if fill is None and block.size:
            states, sizes = np.unique(block, return_counts=True)
            fill = int(states[sizes.argmax()])
        stored = block != (0 if fill is None else fill)
        counts.append(stored.sum(axis=1, dtype=np.int64))
        indices.append(np.nonzero(stored)[1].astype(index_type))
        values.append(block[stored])
    arrays: dict[str, NDArray[Any]] = {
        "indptr": np.cumsum(np.concatenate(counts)),
        "indices": np.concatenate(indices),
        "values": np.concatenate(values),
    }
    return fill or 0, arrays


def open_labels(folder: Path, stem: str) -> LabelStore:
    """Open what ``write_labels`` wrote.

    Raises:
        InputError: files are missing or disagree with each other.
    """
    try:
        about = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
        num_images, num_labels = about["shape"]
        store = LabelStore(folder, stem, (num_images, num_labels), about["fill"])
        check_states(about["states"])
        _check_label_arrays(store)
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = (
            f"Expected {folder} to hold the label matrix {stem!r}, got: {error}. Delete that folder and build it again."
        )
        raise InputError(msg) from error
    return store


def check_states(states: Mapping[str, int]) -> None:
    """Raise ``ValueError`` unless a file was written with this program's code for label states."""
    if states != STATES:
        msg = f"it uses another code for label states: {states}"
        raise ValueError(msg)


def _check_label_arrays(store: LabelStore) -> None:
    if store.fill is None:
        found: tuple[int, ...] = store._array("i8").shape  # noqa: SLF001
        expected: tuple[int, ...] = store.shape
    else:
        indptr = store._array("indptr")  # noqa: SLF001
        num_entries = int(indptr[-1])
        found = (len(indptr) - 1, len(store._array("indices")), len(store._array("values")))  # noqa: SLF001
        expected = (store.shape[0], num_entries, num_entries)
    if found != expected:
        msg = f"sizes {found} where {expected} were written"
        raise ValueError(msg)
