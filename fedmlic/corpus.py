"""A data set on disk: built once, memory-mapped by every process.

``open_corpus`` draws or decodes every image of a ``Dataset`` into one folder of
plain arrays, named by the hash of everything that decides their content, and
opens it. Later calls, in this process or another, only open it.

The folder ``<home>/corpora/<name>/<key>`` is written under a lock to a temporary
name and renamed when complete; ``manifest.json`` is written last and marks it as
complete. A damaged folder is reported, never rebuilt in silence.

Rows are sorted by split (train, val, test), owner and image id, so a split and a
natural client are contiguous.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fedmlic.dataset import SPLITS, Objects
from fedmlic.errors import InputError
from fedmlic.labels import STATES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.dataset import Dataset, Table

    Progress = Callable[[int, int], None]

SCHEMA = "fedmlic-corpus"
SCHEMA_VERSION = 1

MAX_DENSE_LABELS = 256
"""Label matrices with more columns than this are stored as CSR."""

JPEG_QUALITY = 95
"""Quality of stored images where the raw pixels would exceed the budget."""

CHUNK = 256
"""Images drawn per task."""

SMALL_BYTES = 1 << 22
"""Files up to this size are hashed again whenever a corpus is opened."""


def home() -> Path:
    """Where corpora and federations are kept: ``$FEDMLIC_HOME``, or the user's cache folder."""
    chosen = os.environ.get("FEDMLIC_HOME")
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "fedmlic"


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


def _encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    from PIL import Image  # noqa: PLC0415  (only large corpora need it)

    buffer = BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    from PIL import Image  # noqa: PLC0415

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
        _check_states(about["states"])
        _check_label_arrays(store)
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = (
            f"Expected {folder} to hold the label matrix {stem!r}, got: {error}. Delete that folder and build it again."
        )
        raise InputError(msg) from error
    return store


def _check_states(states: Mapping[str, int]) -> None:
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


@dataclass(frozen=True)
class Corpus:
    """An opened data set.

    Attributes:
        path: its folder.
        manifest: what ``manifest.json`` says.
        labels: the data set's own labels, ``[images, labels]``.
        images: the pixels.
    """

    path: Path
    manifest: Mapping[str, Any]
    labels: LabelStore
    images: Images

    @property
    def name(self) -> str:
        """The data set's name."""
        return str(self.manifest["name"])

    @property
    def key(self) -> str:
        """Hash of everything that decides the content; two corpora with one key hold the same bytes."""
        return str(self.manifest["key"])

    @property
    def label_names(self) -> tuple[str, ...]:
        """Column names, in order."""
        return tuple(self.manifest["label_names"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.images.shape[1:]

    @property
    def num_images(self) -> int:
        """Images of all splits."""
        return self.images.shape[0]

    @cached_property
    def splits(self) -> dict[str, range]:
        """Rows of each split; they are contiguous."""
        return {split: range(*bounds) for split, bounds in self.manifest["splits"].items()}

    @cached_property
    def owners(self) -> NDArray[np.int64]:
        """int64 ``[images]``, or ``NO_OWNER``."""
        return cast("NDArray[np.int64]", np.load(self.path / "owners.npy"))

    @cached_property
    def owner_names(self) -> list[str]:
        """Names of owners 0, 1, ..., empty where they have none."""
        return cast("list[str]", _read_json(self.path / "owner_names.json"))

    @cached_property
    def image_ids(self) -> list[str]:
        """One unique text per image."""
        return cast("list[str]", _read_json(self.path / "image_ids.json"))

    @cached_property
    def objects(self) -> Objects | None:
        """Instances, where known; ``row`` counts rows of this corpus."""
        if not (self.path / "objects.npz").exists():
            return None
        with np.load(self.path / "objects.npz") as arrays:
            return Objects(arrays["row"], arrays["label"], arrays["box"], arrays["area"])


def _read_json(path: Path) -> Any:  # noqa: ANN401  (JSON is untyped)
    return json.loads(path.read_text(encoding="utf-8"))


def open_corpus(
    dataset: Dataset,
    home: Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    max_raw_gb: float = 40.0,
) -> Corpus:
    """Open the corpus of ``dataset``, building it first if it does not exist.

    Args:
        dataset: what to draw or decode.
        home: where corpora are kept; ``home()`` by default.
        progress: called with (images done, images in all) while building.
        workers: threads; one per core up to 8 by default.
        max_raw_gb: above this many 1e9 bytes of pixels, images are kept as JPEG (quality 95).

    Raises:
        InputError: anything wrong with the data set (all of it at once), a damaged corpus
            in the way, or no room for a new one.
    """
    base = (home or globals()["home"]()) / "corpora" / _folder_name(dataset.name)
    key = corpus_key(dataset.name, dataset.version, dataset.identity)
    found = _find(base, key, max_raw_gb)
    if found is not None:
        return found
    from filelock import FileLock  # noqa: PLC0415  (only builders need it)

    try:
        base.mkdir(parents=True, exist_ok=True)
        lock = FileLock(base / f".{key}.lock")
        lock.acquire()
    except OSError as error:
        msg = f"Expected {base} to be writable, got: {error}. Set FEDMLIC_HOME to a folder of yours."
        raise InputError(msg) from error
    try:
        # Another process may have built it while this one waited.
        found = _find(base, key, max_raw_gb)
        return found or _build(dataset, base, key, _Options(progress, workers or _num_cores(), max_raw_gb))
    finally:
        lock.release()


def _folder_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".") or "unnamed"


def _num_cores() -> int:
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def corpus_key(name: str, version: str, identity: Mapping[str, Any]) -> str:
    """12 hexadecimal digits: the hash of everything that decides a corpus's content."""
    what = [SCHEMA, SCHEMA_VERSION, name, version, dict(identity)]
    text = json.dumps(what, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _find(base: Path, key: str, max_raw_gb: float) -> Corpus | None:
    """The finished corpus of ``key`` whose storage is the one that the budget asks for."""
    for storage in ("raw", "jpeg"):
        folder = base / _stored_key(key, storage)
        if folder.exists():
            corpus = load_corpus(folder)
            if corpus.key != folder.name:
                raise _damaged(folder, f"it is the corpus {corpus.key}")
            if _storage(corpus.images.shape, max_raw_gb) == storage:
                return corpus
    return None


def _stored_key(key: str, storage: str) -> str:
    return key if storage == "raw" else f"{key}-{storage}"


def _storage(shape: tuple[int, int, int, int], max_raw_gb: float) -> str:
    return "raw" if float(np.prod(shape, dtype=np.float64)) <= max_raw_gb * 1e9 else "jpeg"


@dataclass(frozen=True)
class _Options:
    progress: Progress | None
    workers: int
    max_raw_gb: float


def _build(dataset: Dataset, base: Path, key: str, options: _Options) -> Corpus:
    """Write the corpus to a temporary folder and move it into place. Call under the lock."""
    for leftover in base.glob(f".{key}*.tmp"):
        shutil.rmtree(leftover)  # of a build that was killed: the lock is ours
    table = dataset.table()
    _check_table(dataset, table)
    shape = (len(table.image_ids), *dataset.image_shape)
    storage = _storage(shape, options.max_raw_gb)
    target = base / _stored_key(key, storage)
    part = base / f".{target.name}.tmp"
    part.mkdir()
    try:
        _check_room(part, shape, storage)
        order = _row_order(table)
        _write_images(dataset, table, order, part, storage, options)
        _write_rows(table, order, part)
        _write_manifest(dataset, table, order, part, target.name, storage)
        part.rename(target)
        _sync(base)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return load_corpus(target)


def _check_table(dataset: Dataset, table: Table) -> None:
    if not table.image_ids:
        msg = f"Expected data set {dataset.name} to hold an image, got none."
        raise InputError(msg)
    if table.labels.shape[1] != len(dataset.label_names):
        msg = (
            f"Expected data set {dataset.name} to name every label, got {len(dataset.label_names)} names "
            f"for {table.labels.shape[1]} columns."
        )
        raise InputError(msg)


def _check_room(folder: Path, shape: tuple[int, int, int, int], storage: str) -> None:
    needed = int(np.prod(shape, dtype=np.float64)) if storage == "raw" else 0
    free = shutil.disk_usage(folder).free
    if needed > free:
        msg = (
            f"Expected {folder.parent} to have {needed / 1e9:.1f} GB free, got {free / 1e9:.1f} GB. "
            "Set FEDMLIC_HOME to a larger disk or choose a smaller image size."
        )
        raise InputError(msg)


def _row_order(table: Table) -> NDArray[np.int64]:
    """Table rows in stored order: split, then owner, then image id."""
    rank = {split: place for place, split in enumerate(SPLITS)}
    keys = [(rank[s], int(o), i) for s, o, i in zip(table.splits, table.owners, table.image_ids, strict=True)]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def _draw(dataset: Dataset, table: Table, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], list[str]]:
    """uint8 ``[rows, height, width, channels]`` and what is wrong with them."""
    out = np.zeros((len(rows), *dataset.image_shape), dtype=np.uint8)
    if dataset.images is not None:
        out[:] = _checked(dataset.images(rows), out.shape)
        return out, []
    problems = []
    for place, row in enumerate(rows.tolist()):
        try:
            out[place] = _checked(dataset.image(row), out.shape[1:])
        except InputError as error:
            where = table.sources[row] if table.sources else table.image_ids[row]
            problems.append(f"{where}: {error}")
    return out, problems


def _checked(image: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.shape != shape:
        msg = f"Expected images to be uint8 {list(shape)}, got {image.dtype} {list(image.shape)}."
        raise InputError(msg)
    return image


def _write_images(
    dataset: Dataset, table: Table, order: NDArray[np.int64], folder: Path, storage: str, options: _Options
) -> None:
    """Draw every image, ``CHUNK`` at a time and several chunks at once, and store them in order."""
    problems: list[str] = []
    chunks = [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]
    writer = _raw_writer if storage == "raw" else _jpeg_writer
    shape = (len(order), *dataset.image_shape)
    done = 0
    with ThreadPoolExecutor(options.workers) as pool, writer(folder, shape) as write:
        # A few chunks at a time: finished chunks must not pile up in front of a slow disk.
        for wave in range(0, len(chunks), options.workers):
            for pixels, wrong in pool.map(
                lambda rows: _draw(dataset, table, rows), chunks[wave : wave + options.workers]
            ):
                problems += wrong
                if not problems:
                    write(done, pixels)
                done += len(pixels)
                if options.progress is not None:
                    options.progress(done, len(order))
    if problems:
        raise InputError(_summary(f"Expected every image of {dataset.name} to be readable", problems))


def _summary(expected: str, problems: list[str]) -> str:
    shown = "\n".join(f"  {problem}" for problem in problems[:10])
    more = f"\n  ... and {len(problems) - 10} more" if len(problems) > 10 else ""
    return f"{expected}, got {len(problems)} problems. Correct them and start again:\n{shown}{more}"


@contextlib.contextmanager
def _raw_writer(folder: Path, shape: tuple[int, int, int, int]) -> Iterator[Callable[[int, NDArray[np.uint8]], None]]:
    pixels = np.lib.format.open_memmap(folder / "images.u8.npy", mode="w+", dtype=np.uint8, shape=shape)

    def write(start: int, images: NDArray[np.uint8]) -> None:
        pixels[start : start + len(images)] = images

    yield write
    pixels.flush()


@contextlib.contextmanager
def _jpeg_writer(folder: Path, shape: tuple[int, int, int, int]) -> Iterator[Callable[[int, NDArray[np.uint8]], None]]:
    offsets = np.zeros(shape[0] + 1, dtype=np.int64)
    with (folder / "images.blob").open("wb") as blob:

        def write(start: int, images: NDArray[np.uint8]) -> None:
            for place, image in enumerate(images, start):
                offsets[place + 1] = offsets[place] + blob.write(_encode_jpeg(image))

        yield write
    np.save(folder / "images.offsets.npy", offsets)


def _write_rows(table: Table, order: NDArray[np.int64], folder: Path) -> None:
    write_labels(folder, "labels", table.labels[order], table.labels.shape[1])
    np.save(folder / "owners.npy", table.owners[order].astype(np.int64))
    _write_json(folder / "owner_names.json", table.owner_names)
    _write_json(folder / "image_ids.json", [table.image_ids[row] for row in order])
    if table.objects is not None:
        objects = table.objects.take(order)
        np.savez(folder / "objects.npz", row=objects.row, label=objects.label, box=objects.box, area=objects.area)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=None), encoding="utf-8")


def _write_manifest(
    dataset: Dataset, table: Table, order: NDArray[np.int64], folder: Path, key: str, storage: str
) -> None:
    counts = [table.splits.count(split) for split in SPLITS]
    ends = np.cumsum(counts).tolist()
    manifest = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "key": key,
        "name": dataset.name,
        "version": dataset.version,
        "identity": dict(dataset.identity),
        "licence": dataset.licence,
        "label_names": list(dataset.label_names),
        "states": STATES,
        "num_images": len(order),
        "image": {"shape": list(dataset.image_shape), "dtype": "uint8", "layout": "NHWC", "storage": storage},
        "splits": {split: [end - count, end] for split, count, end in zip(SPLITS, counts, ends, strict=True)},
        "report": dict(table.report),
        "files": {path.name: _describe(path) for path in sorted(folder.iterdir())},
    }
    for path in folder.iterdir():
        _sync(path)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    _sync(folder / "manifest.json")
    _sync(folder)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    about: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": digest}
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r")
        about |= {"shape": list(array.shape), "dtype": str(array.dtype)}
    return about


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_corpus(path: Path) -> Corpus:
    """Open an existing corpus folder after checking it.

    Checked are the schema, every file's presence, size, shape and type, and the hash of
    every file of at most 4 MiB (pixels of a large corpus are not read).

    Raises:
        InputError: it is missing, incomplete, damaged or something else.
    """
    path = Path(path)
    if not path.is_dir():
        msg = f"Expected a corpus folder, got nothing at {path}. Build it by opening its data set."
        raise InputError(msg)
    try:
        manifest = _read_json(path / "manifest.json")
        _check_manifest(manifest)
        for name, about in manifest["files"].items():
            _check_file(path / name, about)
        num_images, storage = manifest["num_images"], manifest["image"]["storage"]
        height, width, channels = manifest["image"]["shape"]
        images = Images(path, (num_images, height, width, channels), storage)
        corpus = Corpus(path, manifest, open_labels(path, "labels"), images)
        _check_shapes(corpus)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, str(error) or type(error).__name__) from error
    return corpus


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(
        f"Expected {path} to be a complete corpus, got: {reason}. Delete that folder to have it built again."
    )


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    if manifest["schema"] != SCHEMA or manifest["schema_version"] != SCHEMA_VERSION:
        msg = f"schema {manifest['schema']} version {manifest['schema_version']}, not {SCHEMA} {SCHEMA_VERSION}"
        raise ValueError(msg)
    key = corpus_key(manifest["name"], manifest["version"], manifest["identity"])
    if manifest["key"] != _stored_key(key, manifest["image"]["storage"]):
        msg = f"its manifest describes corpus {key} but is marked {manifest['key']}"
        raise ValueError(msg)
    _check_states(manifest["states"])


def _check_file(path: Path, about: Mapping[str, Any]) -> None:
    size = path.stat().st_size
    if size != about["bytes"]:
        msg = f"{path.name} has {size} bytes where {about['bytes']} were written"
        raise ValueError(msg)
    if size <= SMALL_BYTES:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != about["sha256"]:
            msg = f"{path.name} was changed after it was written"
            raise ValueError(msg)
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r")
        if [list(array.shape), str(array.dtype)] != [about["shape"], about["dtype"]]:
            msg = f"{path.name} is {array.dtype} {list(array.shape)}, not {about['dtype']} {about['shape']}"
            raise ValueError(msg)


def _check_shapes(corpus: Corpus) -> None:
    """What the manifest says of the whole must be what it says of the parts."""
    files, count = corpus.manifest["files"], corpus.num_images
    expected: dict[str, list[int]] = {"owners.npy": [count]}
    if corpus.images.storage == "raw":
        expected["images.u8.npy"] = list(corpus.images.shape)
    else:
        expected["images.offsets.npy"] = [count + 1]
    for name, shape in expected.items():
        if files[name]["shape"] != shape:
            msg = f"{name} is {files[name]['shape']}, not {shape}"
            raise ValueError(msg)
    if corpus.labels.shape != (count, len(corpus.label_names)):
        msg = f"labels are {corpus.labels.shape}, not {(count, len(corpus.label_names))}"
        raise ValueError(msg)
    ends = [corpus.splits[split] for split in SPLITS]
    if [r.start for r in ends] != [0, *(r.stop for r in ends[:-1])] or ends[-1].stop != count:
        msg = f"its splits {corpus.manifest['splits']} do not cover {count} images"
        raise ValueError(msg)
