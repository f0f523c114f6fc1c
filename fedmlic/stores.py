"""Pixels and label matrices as files: written once, opened by every process that reads them.

Both are read by rows and return ordinary arrays. Both pickle as a path: each process
maps the files itself, so nothing large travels to a worker.
"""

from __future__ import annotations

import hashlib
import json
import tokenize
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from fedmlic.errors import InputError
from fedmlic.files import file_sha256
from fedmlic.labels import STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

MAX_DENSE_LABELS = 256
"""Label matrices with more columns than this are stored as CSR."""

DENSE, COMPRESSED = ("i8",), ("indptr", "indices", "values")
"""Parts that a label matrix is stored in."""

JPEG_QUALITY = 95
"""Quality of stored images where the raw pixels would exceed the budget."""


PIXELS = {"raw": "images.u8.npy", "jpeg": "images.blob"}
"""File of the pixels of each kind of storage."""

IMAGE_HASHES = "images.hashes.npy"
"""File of ``content_hash`` of every stored image: uint64 ``[images]``."""


class DamagedError(InputError):
    """Stored data are not what was written, or cannot be read.

    A run that goes on with them, or without the client that has them, would come to another result.
    """


def content_hash(data: bytes | memoryview) -> int:
    """64 bits of SHA-256: equal for equal bytes, and for others with a chance of 5e-20."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


class WrittenFiles:
    """What a folder's files were when they were written; each is compared once per process, before it is read.

    Args:
        folder: where they lie.
        files: by name, ``bytes`` and ``sha256``; files that are not named are not compared.
    """

    def __init__(self, folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder = folder
        self.files = files
        self._good: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Without what this process has compared: another one looks for itself."""
        return {**self.__dict__, "_good": set()}

    def check(self, *names: str) -> None:
        """Compare files with their hashes.

        Raises:
            DamagedError: one is not what was written, or cannot be read.
        """
        for name in names:
            if name in self._good or name not in self.files:
                continue
            with readable(self.folder / name):
                found = file_sha256(self.folder / name)
            if found != self.files[name]["sha256"]:
                raise damaged(self.folder, f"{name} was changed after it was written")
            self._good.add(name)


def damaged(folder: Path, reason: str) -> DamagedError:
    """The error of a folder whose files are not what was written."""
    return DamagedError(
        f"Expected {folder} to hold what was written there, got: {reason}. Delete that folder to have it built again."
    )


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Inside the block a file is read that was written.

    Raises:
        DamagedError: it is gone, or the system does not read it.
    """
    try:
        yield
    except OSError as error:
        check_unreadable(path, error)
        raise damaged(path.parent, f"{path.name} cannot be read: {error}") from error


def check_unreadable(path: Path, error: Exception) -> None:
    """Raise ``DamagedError`` if an error says nothing of what was written: no permission, no handle left, a bad disk.

    Nobody is told then to delete what may be sound.

    Args:
        path: what was to be read.
        error: what reading it raised.
    """
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        msg = (
            f"Expected {path} to be readable, got: {error}. Check the disk, the permissions and the limit of open "
            "files; what is stored there may be sound."
        )
        raise DamagedError(msg) from error


def open_array(path: Path) -> NDArray[Any]:
    """Map the array of an ``.npy`` file.

    Raises:
        DamagedError: it is gone, or its header cannot be read, for which NumPy has errors of several unrelated kinds.
    """
    try:
        with readable(path):
            return cast("NDArray[Any]", np.load(path, mmap_mode="r", allow_pickle=False))
    except DamagedError:
        raise
    except (ValueError, SyntaxError, tokenize.TokenError) as error:
        raise damaged(path.parent, f"{path.name} was changed after it was written") from error


def seal(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says, besides its own hash."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def check_seal(manifest: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a manifest is not what was written."""
    if manifest.get("sha256") != seal(manifest):
        raise ValueError("manifest.json was changed after it was written")


class Images:
    """Stored images, opened when first read; each is compared with its hash when this process first reads it.

    Pickling carries the path, never the pixels: each process maps the file itself.

    Args:
        folder: a corpus folder.
        shape: images, height, width, channels.
        storage: ``"raw"`` or ``"jpeg"``.
        files: the hashes of the folder's files.
    """

    raw: ClassVar[str] = PIXELS["raw"]
    """File of a storage that is read without decoding."""

    as_maps: ClassVar[bool] = False
    """Whether these are feature maps that stand in place of images (``fedmlic.features``)."""

    def __init__(
        self, folder: Path, shape: tuple[int, int, int, int], storage: str, files: WrittenFiles | None = None
    ) -> None:
        self.folder = folder
        self.shape = shape
        self.storage = storage
        self.files = files or WrittenFiles(folder, {})
        self._pixels: NDArray[Any] | None = None
        self._offsets: NDArray[np.int64] | None = None
        self._hashes: NDArray[np.uint64] | None = None
        self._compared: NDArray[np.bool_] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the open maps and what this process has compared."""
        return {**self.__dict__, "_pixels": None, "_offsets": None, "_hashes": None, "_compared": None}

    @property
    def hashed(self) -> bool:
        """Whether the corpus holds a hash of every image; those of earlier versions did not."""
        return IMAGE_HASHES in self.files.files

    def __len__(self) -> int:
        """How many images there are."""
        return self.shape[0]

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """uint8 ``[rows, height, width, channels]``: a contiguous copy, in the order asked.

        Raises:
            DamagedError: an image is not what was written.
        """
        if self.storage == "raw":
            return self._take_raw(np.asarray(rows, dtype=np.int64))
        return self._take_jpeg(np.asarray(rows, dtype=np.int64))

    def _take_raw(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        if self._pixels is None:
            self._pixels = open_array(self.folder / self.raw)
        # The copy is an ordinary array: a subclass that remembers the map would be pickled whole.
        out = np.asarray(self._pixels)[rows]
        self._compare(rows, lambda place: out[place].data)
        return out

    def _compare(self, rows: NDArray[np.int64], content: Callable[[int], bytes | memoryview]) -> None:
        """Compare the images of ``rows`` that this process has not compared yet; ``content`` gives their bytes."""
        if not self.hashed:
            return
        if self._hashes is None or self._compared is None:
            self.files.check(IMAGE_HASHES)
            with readable(self.folder / IMAGE_HASHES):
                self._hashes = np.load(self.folder / IMAGE_HASHES)
            self._compared = np.zeros(len(self), dtype=np.bool_)
        new = np.flatnonzero(~self._compared[rows])
        for place, expected in zip(new.tolist(), self._hashes[rows[new]].tolist(), strict=True):
            if content_hash(content(place)) != expected:
                raise damaged(self.folder, f"the image in row {rows[place]} was changed after it was written")
        self._compared[rows[new]] = True

    def _take_jpeg(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self._pixels is None:
            with readable(self.folder / PIXELS["jpeg"]):
                self._pixels = np.memmap(self.folder / PIXELS["jpeg"], dtype=np.uint8, mode="r")
        if self._offsets is None:
            self.files.check("images.offsets.npy")
            with readable(self.folder / "images.offsets.npy"):
                self._offsets = np.load(self.folder / "images.offsets.npy")
        out = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        for place, row in enumerate(rows.tolist()):
            data = self._pixels[self._offsets[row] : self._offsets[row + 1]].tobytes()
            self._compare(rows[place : place + 1], lambda _, data=data: data)  # type: ignore[misc]
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
        files: the hashes of the folder's files; they are compared before labels are first taken.
    """

    def __init__(
        self, folder: Path, stem: str, shape: tuple[int, int], fill: int | None, files: WrittenFiles | None = None
    ) -> None:
        self.folder = folder
        self.stem = stem
        self.shape = shape
        self.fill = fill
        self.files = files or WrittenFiles(folder, {})
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
        """int8 ``[rows, labels]``: a contiguous copy, in the order asked.

        Raises:
            DamagedError: the labels are not what was written.
        """
        rows = np.asarray(rows, dtype=np.int64)
        self.files.check(*(f"{self.stem}.{part}.npy" for part in (DENSE if self.fill is None else COMPRESSED)))
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
            self._arrays[part] = np.asarray(open_array(self.folder / f"{self.stem}.{part}.npy"))
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


def open_labels(folder: Path, stem: str, files: WrittenFiles | None = None) -> LabelStore:
    """Open what ``write_labels`` wrote.

    Args:
        folder: where it lies.
        stem: beginning of its file names.
        files: the hashes of the folder's files.

    Raises:
        InputError: files are missing or disagree with each other.
    """
    try:
        about = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
        num_images, num_labels = about["shape"]
        store = LabelStore(folder, stem, (num_images, num_labels), about["fill"], files)
        check_states(about["states"])
        _check_label_arrays(store)
    except DamagedError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        check_unreadable(folder / f"{stem}.json", error)
        msg = (
            f"Expected {folder} to hold the label matrix {stem!r}, got: {error}. Delete that folder to have it built "
            "again."
        )
        raise DamagedError(msg) from error
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
