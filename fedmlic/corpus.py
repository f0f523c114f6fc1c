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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fedmlic.dataset import SPLITS, Flags, Objects
from fedmlic.errors import InputError, listing
from fedmlic.labels import STATES
from fedmlic.stores import Images, LabelStore, check_states, encode_jpeg, open_labels, write_labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.dataset import Dataset, Table

    Progress = Callable[[int, int], None]

__all__ = ["Corpus", "Images", "LabelStore", "home", "load_corpus", "open_corpus", "open_labels", "write_labels"]

SCHEMA = "fedmlic-corpus"
SCHEMA_VERSION = 1

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

    def __getstate__(self) -> dict[str, Any]:
        """The fields without what was read through them; each process reads for itself."""
        return {name: self.__dict__[name] for name in ("path", "manifest", "labels", "images")}

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

    @property
    def label_ids(self) -> tuple[str, ...]:
        """The source's own id of each label, in order; empty where it has none."""
        return tuple(self.manifest.get("label_ids", ()))

    @property
    def parents(self) -> tuple[str, ...]:
        """The coarser label each label belongs to, in order; empty where there is no hierarchy."""
        return tuple(self.manifest.get("parents", ()))

    @cached_property
    def flags(self) -> Flags | None:
        """What the source says of single entries beyond their state; ``row`` counts rows of this corpus."""
        if not (self.path / "flags.npz").exists():
            return None
        with np.load(self.path / "flags.npz") as arrays:
            return Flags(arrays["row"], arrays["label"], arrays["bits"])

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
    base = _base(home, dataset.name)
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


def _base(chosen: Path | None, name: str) -> Path:
    """The folder of all corpora of one data set."""
    return (chosen or home()) / "corpora" / (re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".") or "unnamed")


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


@dataclass(frozen=True)
class _Job:
    """What is written where: table rows ``order`` to ``folder``."""

    dataset: Dataset
    table: Table
    order: NDArray[np.int64]
    folder: Path
    storage: str
    options: _Options

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Images, height, width, channels."""
        return (len(self.order), *self.dataset.image_shape)


def _build(dataset: Dataset, base: Path, key: str, options: _Options) -> Corpus:
    """Write the corpus to a temporary folder and move it into place. Call under the lock."""
    for leftover in base.glob(f".{key}*.tmp"):
        shutil.rmtree(leftover)  # of a build that was killed: the lock is ours
    table = dataset.table()
    _check_table(dataset, table)
    storage = _storage((len(table.image_ids), *dataset.image_shape), options.max_raw_gb)
    target = base / _stored_key(key, storage)
    part = base / f".{target.name}.tmp"
    part.mkdir()
    try:
        job = _Job(dataset, table, _row_order(table), part, storage, options)
        _check_room(job)
        _write_images(job)
        _write_rows(job)
        _write_manifest(job, target.name)
        part.rename(target)
        _sync(base)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return load_corpus(target)


def _check_table(dataset: Dataset, table: Table) -> None:
    if not table.image_ids:
        msg = f"Expected data set {dataset.name} to hold an image, got none."
        raise InputError(msg)
    for what, entries in (("label_ids", dataset.label_ids), ("parents", dataset.parents)):
        if entries and len(entries) != len(dataset.label_names):
            msg = f"Expected {what} of data set {dataset.name} to be {len(dataset.label_names)}, got {len(entries)}."
            raise InputError(msg)
    if table.labels.shape[1] != len(dataset.label_names):
        msg = (
            f"Expected data set {dataset.name} to name every label, got {len(dataset.label_names)} names "
            f"for {table.labels.shape[1]} columns."
        )
        raise InputError(msg)


def _check_room(job: _Job) -> None:
    needed = int(np.prod(job.shape, dtype=np.float64)) if job.storage == "raw" else 0
    free = shutil.disk_usage(job.folder).free
    if needed > free:
        msg = (
            f"Expected {job.folder.parent} to have {needed / 1e9:.1f} GB free, got {free / 1e9:.1f} GB. "
            "Set FEDMLIC_HOME to a larger disk or choose a smaller image size."
        )
        raise InputError(msg)


def _row_order(table: Table) -> NDArray[np.int64]:
    """Table rows in stored order: split, then owner, then image id."""
    rank = {split: place for place, split in enumerate(SPLITS)}
    keys = [(rank[s], int(o), i) for s, o, i in zip(table.splits, table.owners, table.image_ids, strict=True)]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def _draw(job: _Job, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], list[str]]:
    """uint8 ``[rows, height, width, channels]`` and what is wrong with them."""
    dataset, table = job.dataset, job.table
    shape = (len(rows), *dataset.image_shape)
    if dataset.images is not None:
        return _checked(dataset.images(rows), shape), []
    out = np.zeros(shape, dtype=np.uint8)
    problems = []
    for place, row in enumerate(rows.tolist()):
        try:
            out[place] = _checked(dataset.image(row), dataset.image_shape)
        except InputError as error:
            where = table.sources[row] if table.sources else table.image_ids[row]
            problems.append(f"{where}: {error}")
    return out, problems


def _checked(image: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.shape != shape:
        msg = f"Expected images to be uint8 {list(shape)}, got {image.dtype} {list(image.shape)}."
        raise InputError(msg)
    return image


def _write_images(job: _Job) -> None:
    """Draw every image, ``CHUNK`` at a time and several chunks at once, and store them in order."""
    problems: list[str] = []
    workers = job.options.workers
    chunks = [job.order[start : start + CHUNK] for start in range(0, len(job.order), CHUNK)]
    writer = _raw_writer if job.storage == "raw" else _jpeg_writer
    done = 0
    with ThreadPoolExecutor(workers) as pool, writer(job.folder, job.shape) as write:
        # A few chunks at a time: finished chunks must not pile up in front of a slow disk.
        for wave in range(0, len(chunks), workers):
            for pixels, wrong in pool.map(lambda rows: _draw(job, rows), chunks[wave : wave + workers]):
                problems += wrong
                if not problems:
                    write(done, pixels)
                done += len(pixels)
                if job.options.progress is not None:
                    job.options.progress(done, len(job.order))
    if problems:
        expected = f"Expected every image of data set {job.dataset.name} to be readable"
        raise listing(expected, problems)


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
                offsets[place + 1] = offsets[place] + blob.write(encode_jpeg(image))

        yield write
    np.save(folder / "images.offsets.npy", offsets)


def _write_rows(job: _Job) -> None:
    table, order, folder = job.table, job.order, job.folder
    write_labels(folder, "labels", table.labels[order], table.labels.shape[1])
    np.save(folder / "owners.npy", table.owners[order].astype(np.int64))
    _write_json(folder / "owner_names.json", table.owner_names)
    _write_json(folder / "image_ids.json", [table.image_ids[row] for row in order])
    if table.objects is not None:
        objects = table.objects.take(order)
        np.savez(folder / "objects.npz", row=objects.row, label=objects.label, box=objects.box, area=objects.area)
    if table.flags is not None:
        flags = table.flags.take(order)
        np.savez(folder / "flags.npz", row=flags.row, label=flags.label, bits=flags.bits)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def _write_manifest(job: _Job, key: str) -> None:
    """Describe every file, wait until all are on the disk, and only then write the manifest."""
    dataset, table, folder = job.dataset, job.table, job.folder
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
        "num_images": len(job.order),
        "image": {"shape": list(dataset.image_shape), "dtype": "uint8", "layout": "NHWC", "storage": job.storage},
        "splits": {split: [end - count, end] for split, count, end in zip(SPLITS, counts, ends, strict=True)},
        "report": dict(table.report),
        **({"label_ids": list(dataset.label_ids)} if dataset.label_ids else {}),
        **({"parents": list(dataset.parents)} if dataset.parents else {}),
        "files": {path.name: _describe(path) for path in sorted(folder.iterdir())},
    }
    for path in folder.iterdir():
        _sync(path)
    _write_json(folder / "manifest.json", manifest)
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
    check_states(manifest["states"])


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
