"""A data set on disk: built once, memory-mapped by every process.

``open_corpus`` draws or decodes every image of a ``Dataset`` into one folder of
plain arrays, named by the hash of everything that decides their content, and
opens it. Later calls, in this process or another, only open it.

The folder ``<home>/corpora/<name>/<key>`` (or one of your choice) is written under a
lock to a temporary name and renamed when complete; ``manifest.json`` is written last and
marks it as complete. A damaged folder is reported, never rebuilt in silence. A build that
was killed goes on where it stopped (``fedmlic.pixels``).

Rows are sorted by split (train, val, test), owner and image id, so a split and a
natural client are contiguous.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from fedmlic import code
from fedmlic.dataset import NO_OWNER, SPLITS, Flags, Objects
from fedmlic.errors import InputError, listing
from fedmlic.files import file_sha256, locked, sync
from fedmlic.labels import STATES
from fedmlic.pixels import Drawn, Plan, equal_images, write_pixels
from fedmlic.stores import (
    IMAGE_HASHES,
    PIXELS,
    DamagedError,
    Images,
    LabelStore,
    WrittenFiles,
    check_seal,
    check_states,
    check_unreadable,
    content_hash,
    open_array,
    open_labels,
    readable,
    seal,
    write_labels,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.dataset import Dataset, Table

    Progress = Callable[[int, int], None]

__all__ = ["Corpus", "Images", "LabelStore", "home", "load_corpus", "open_corpus", "open_labels", "write_labels"]

SCHEMA = "fedmlic-corpus"
SCHEMA_VERSION = 1

KEPT = "Or leave their rows out, counted and recorded: --bad-files skip. What was decoded is kept for that."
"""Note of an error after which a build can go on."""

LABEL_BLOCK_ENTRIES = 1 << 24
"""Entries of the label matrix that are brought into stored order at a time."""

SMALL_BYTES = 1 << 22
"""Files up to this size are compared with their hash whenever a corpus is opened, larger ones when they are read."""

BLOCK_IMAGES = 1024
"""Images that are hashed at a time where a corpus has no hashes yet."""


def home() -> Path:
    """Where corpora and federations are kept: ``$FEDMLIC_HOME``, or the user's cache folder.

    Raises:
        InputError: the user has no home folder, as an id without a name in a container, or ``~NAME`` names nobody.
    """
    chosen = os.environ.get("FEDMLIC_HOME")
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        if chosen:
            return Path(chosen).expanduser()
        return (Path(cache) if cache else Path.home() / ".cache") / "fedmlic"
    except RuntimeError as error:
        msg = f"Expected a folder for prepared images, got none: {error} Set FEDMLIC_HOME to one."
        if chosen:
            msg = f"Expected FEDMLIC_HOME to be a folder for prepared images, got {chosen!r}: {error} Give a full path."
        raise InputError(msg) from None


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

    @property
    def content(self) -> str:
        """Hash of what it holds: equal for equal pixels and labels, whatever code drew them."""
        # Hashes of images came later; they say nothing more.
        return code.digest({name: a["sha256"] for name, a in self.files.files.items() if name != IMAGE_HASHES})

    @property
    def files(self) -> WrittenFiles:
        """The hashes of its files."""
        return self.images.files

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
        self.files.check("owners.npy")
        with readable(self.path / "owners.npy"):
            return cast("NDArray[np.int64]", np.load(self.path / "owners.npy"))

    @cached_property
    def owner_names(self) -> list[str]:
        """Names of owners 0, 1, ..., empty where they have none."""
        self.files.check("owner_names.json")
        return cast("list[str]", _read_json(self.path / "owner_names.json"))

    @cached_property
    def image_ids(self) -> list[str]:
        """One unique text per image."""
        self.files.check("image_ids.json")
        return cast("list[str]", _read_json(self.path / "image_ids.json"))

    @property
    def label_ids(self) -> tuple[str, ...]:
        """The source's own id of each label, in order; empty where it has none."""
        return tuple(self.manifest.get("label_ids", ()))

    @property
    def parents(self) -> tuple[str, ...]:
        """The coarser label each label belongs to, in order; empty where there is no hierarchy."""
        return tuple(self.manifest.get("parents", ()))

    @property
    def own(self) -> bool:
        """Whether the images and labels are the user's own, so that hiding labels may not be meant."""
        return bool(self.manifest.get("own", False))

    @cached_property
    def flags(self) -> Flags | None:
        """What the source says of single entries beyond their state; ``row`` counts rows of this corpus."""
        if not (self.path / "flags.npz").exists():
            return None
        self.files.check("flags.npz")
        with readable(self.path / "flags.npz"), np.load(self.path / "flags.npz") as arrays:
            return Flags(arrays["row"], arrays["label"], arrays["bits"])

    @cached_property
    def objects(self) -> Objects | None:
        """Instances, where known; ``row`` counts rows of this corpus."""
        if not (self.path / "objects.npz").exists():
            return None
        self.files.check("objects.npz")
        with readable(self.path / "objects.npz"), np.load(self.path / "objects.npz") as arrays:
            return Objects(arrays["row"], arrays["label"], arrays["box"], arrays["area"])


def _read_json(path: Path) -> Any:  # noqa: ANN401  (JSON is untyped)
    return json.loads(path.read_text(encoding="utf-8"))


def open_corpus(
    dataset: Dataset,
    home: Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    max_raw_gb: float = 40.0,
    *,
    out: Path | None = None,
    bad_files: Literal["fail", "skip"] = "fail",
    max_bad_fraction: float = 0.01,
    keep_failed: bool = False,
) -> Corpus:
    """Open the corpus of ``dataset``, building it first if it does not exist.

    A build that is interrupted or killed goes on where it stopped when it is asked for again.

    Args:
        dataset: what to draw or decode; one that is a corpus already is opened as it is.
        home: where corpora are kept; ``home()`` by default.
        progress: called with (images done, images in all) while building.
        workers: threads; one per core up to 8 by default.
        max_raw_gb: above this many 1e9 bytes of pixels, images are kept as JPEG (quality 95).
        out: build exactly this folder instead, or open it if it is this corpus.
        bad_files: what happens if images cannot be read. ``"fail"`` names them all; ``"skip"``
            leaves their rows out, which is another corpus (its key ends in ``-partial``), and
            records them in the manifest's report.
        max_bad_fraction: with ``"skip"``, the share of images in [0, 1] above which it fails.
        keep_failed: keep what was drawn when images cannot be read, so that another call
            need not draw it again; the error carries the note ``KEPT``.

    Raises:
        InputError: anything wrong with the data set (all of it at once), a damaged corpus
            in the way, or no room for a new one.
    """
    if dataset.built is not None:
        return open_hashed(_open_built(dataset, dataset.built, out), progress)
    key = corpus_key(dataset.name, dataset.version, dataset.identity)
    skip = bad_files == "skip"
    options = _Options(progress, workers or num_cores(), max_raw_gb, max_bad_fraction if skip else 0.0, keep_failed)
    place = _Place(_base(home, dataset.name) if out is None else out.expanduser().absolute().parent, out, key)
    found = place.find(max_raw_gb, skip=skip)
    if found is not None and found.images.hashed:
        return _checked_partial(found, options)
    with ExitStack() as held:
        try:
            held.enter_context(locked(place.base, place.name))
        except OSError as error:
            if found is not None:
                return _checked_partial(open_hashed(found, progress), options)
            hint = "Set FEDMLIC_HOME to a folder of yours." if out is None else "Choose another folder."
            msg = f"Expected {place.base} to be writable, got: {error}. {hint}"
            raise InputError(msg) from error
        # Another process may have built it while this one waited.
        found = place.find(max_raw_gb, skip=skip)
        if found is None:
            return _build(dataset, place, options)
        return _checked_partial(open_hashed(found, progress), options)


def _open_built(dataset: Dataset, built: Path, out: Path | None) -> Corpus:
    if out is not None and out.expanduser().resolve() != built.resolve():
        msg = f"Expected a data set to build in {out}, got the corpus {built}. Copy that folder instead."
        raise InputError(msg)
    corpus = load_corpus(built)
    key = corpus_key(dataset.name, dataset.version, dataset.identity)
    if not corpus.key.startswith(key):
        raise _damaged(built, f"it became the corpus {corpus.key} of {corpus.name} since it was first opened")
    return corpus


def _checked_partial(corpus: Corpus, options: _Options) -> Corpus:
    """The corpus, unless more was left out when it was built than is allowed now."""
    left_out = corpus.manifest.get("left_out", 0)
    if left_out > options.max_bad_fraction * (corpus.num_images + left_out):
        bad = corpus.manifest["report"]["bad_files"]["images"]
        expected = _too_many(corpus.name, corpus.num_images + left_out, options)
        raise listing(expected, [f"{i}: {bad[i]}" for i in bad], complete=True)
    return corpus


def _too_many(name: str, num_images: int, options: _Options) -> str:
    if not options.max_bad_fraction:
        return f"Expected every image of data set {name} to be readable (bad-files=skip leaves the others out)"
    share = f"{options.max_bad_fraction:.2%} of {num_images} images"
    return f"Expected at most {share} of data set {name} to be unreadable (max-bad-fraction allows more)"


def _base(chosen: Path | None, name: str) -> Path:
    """The folder of all corpora of one data set."""
    return (chosen or home()) / "corpora" / (re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".") or "unnamed")


def num_cores() -> int:
    """Threads that a build takes by itself: one per core that this process may use, at most 8."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def corpus_key(name: str, version: str, identity: Mapping[str, Any]) -> str:
    """12 hexadecimal digits: the hash of everything that decides a corpus's content."""
    what = [SCHEMA, SCHEMA_VERSION, name, version, dict(identity)]
    text = json.dumps(what, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class _Place:
    """Where the corpus of ``key`` is looked for and built: below ``base``, or exactly at ``out``."""

    base: Path
    out: Path | None
    key: str

    @property
    def name(self) -> str:
        """Stem of the lock."""
        return self.key if self.out is None else self.out.expanduser().absolute().name

    def target(self, stored_key: str) -> Path:
        """The finished folder of a stored key."""
        return self.base / (stored_key if self.out is None else self.name)

    def find(self, max_raw_gb: float, *, skip: bool) -> Corpus | None:
        """The finished corpus whose storage is the one that the budget asks for, complete ones first."""
        if self.out is not None:
            return self._find_out(max_raw_gb, skip=skip)
        for stored_key in self._keys(skip=skip):
            folder = self.base / stored_key
            if folder.exists():
                corpus = load_corpus(folder)
                if corpus.key != folder.name:
                    raise _damaged(folder, f"it is the corpus {corpus.key}")
                if _fits(corpus, max_raw_gb):
                    return corpus
        return None

    def _find_out(self, max_raw_gb: float, *, skip: bool) -> Corpus | None:
        folder = self.target("")
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return None
        if not (folder / "manifest.json").is_file():
            msg = f"Expected {folder} to be new, or to hold this corpus, got something else there. Choose another."
            raise InputError(msg)
        corpus = load_corpus(folder)
        if corpus.key not in self._keys(skip=skip) or not _fits(corpus, max_raw_gb):
            msg = (
                f"Expected {folder} to be new, or to hold the corpus {self.key}, got the corpus {corpus.key} of "
                f"data set {corpus.name}. Choose another folder, or delete that one."
            )
            raise InputError(msg)
        return corpus

    def _keys(self, *, skip: bool) -> list[str]:
        partial = (False, True) if skip else (False,)
        return [_stored_key(self.key, storage, partial=p) for p in partial for storage in ("raw", "jpeg")]


def _stored_key(key: str, storage: str, *, partial: bool = False) -> str:
    return "-".join([key, *(["jpeg"] if storage == "jpeg" else []), *(["partial"] if partial else [])])


def _fits(corpus: Corpus, max_raw_gb: float) -> bool:
    intended = corpus.num_images + corpus.manifest.get("left_out", 0)
    return _storage((intended, *corpus.image_shape), max_raw_gb) == corpus.images.storage


def _storage(shape: tuple[int, int, int, int], max_raw_gb: float) -> str:
    return "raw" if float(np.prod(shape, dtype=np.float64)) <= max_raw_gb * 1e9 else "jpeg"


@dataclass(frozen=True)
class _Options:
    progress: Progress | None
    workers: int
    max_raw_gb: float
    max_bad_fraction: float
    keep_failed: bool


@dataclass(frozen=True)
class _Job:
    """What is written where: table rows ``order`` to ``folder``."""

    dataset: Dataset
    table: Table
    order: NDArray[np.int64]
    folder: Path
    storage: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Images, height, width, channels."""
        return (len(self.order), *self.dataset.image_shape)

    def place(self, row: int) -> str:
        """The file or image behind a table row, for messages."""
        return self.table.sources[row] if self.table.sources else self.table.image_ids[row]


def _build(dataset: Dataset, place: _Place, options: _Options) -> Corpus:
    """Write the corpus to a temporary folder and move it into place. Call under the lock."""
    table = dataset.table()
    _check_table(dataset, table)
    storage = _storage((len(table.image_ids), *dataset.image_shape), options.max_raw_gb)
    part = place.base / f".{place.target(_stored_key(place.key, storage)).name}.tmp"
    for leftover in place.base.glob(f".{place.name}*.tmp" if place.out is None else part.name):
        if leftover != part:
            shutil.rmtree(leftover)  # of a build that was killed: the lock is ours
    job = _Job(dataset, table, _row_order(table), part / "corpus", storage)
    fresh = not part.exists()
    job.folder.mkdir(parents=True, exist_ok=True)
    try:
        target = place.target(_fill(job, place.key, options))
        if place.out is not None and target.exists():
            target.rmdir()  # it was empty
        job.folder.rename(target)
        sync(target.parent)
    except InputError as error:
        if error.problems and options.keep_failed:
            error.add_note(KEPT)
        elif fresh or error.problems:
            shutil.rmtree(part, ignore_errors=True)
        raise
    except (OSError, MemoryError):
        raise  # a full disk can be emptied; the next call goes on from here
    except Exception:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(part, ignore_errors=True)
    return load_corpus(target)


def _fill(job: _Job, key: str, options: _Options) -> str:
    """Write all files of a corpus and return its stored key."""
    _check_room(job)
    plan = Plan(
        folder=job.folder,
        journal=job.folder.parent,
        shape=job.shape,
        storage=job.storage,
        maker=_maker(job, key),
        draw=lambda start, stop: _draw(job, job.order[start:stop]),
        workers=options.workers,
        progress=options.progress,
    )
    written = write_pixels(plan)
    _check_problems(job, written.problems, options)
    stored = replace(job, order=job.order[written.good])
    left_out = dict(_bad_file(job, int(job.order[row]), reason) for row, reason in written.problems)
    report = dict(job.table.report)
    if left_out:
        report["bad_files"] = {"count": len(left_out), "images": left_out}
    stored_ids = [job.table.image_ids[row] for row in stored.order.tolist()]
    duplicates = equal_images(stored_ids, [job.table.splits[row] for row in stored.order.tolist()], written.hashes)
    if duplicates["images"]:
        report["duplicates"] = duplicates
    _write_rows(stored)
    stored_key = _stored_key(key, job.storage, partial=bool(left_out))
    _write_manifest(stored, stored_key, report, len(left_out))
    return stored_key


def _maker(job: _Job, key: str) -> str:
    """Hash of everything that decides the pixels and their order: what a killed build must share with the next."""
    import PIL

    digest = hashlib.sha256(f"{key} {job.storage} {job.shape} {PIL.__version__}".encode())
    for row in job.order.tolist():
        digest.update(job.table.image_ids[row].encode() + b"\0")
    return digest.hexdigest()


def _check_problems(job: _Job, problems: list[tuple[int, str]], options: _Options) -> None:
    num_images = len(job.order)
    if problems and (len(problems) > options.max_bad_fraction * num_images or len(problems) == num_images):
        lines = [f"{job.place(int(job.order[row]))}: {reason}" for row, reason in problems]
        raise listing(_too_many(job.dataset.name, num_images, options), lines, complete=True)


def _bad_file(job: _Job, row: int, reason: str) -> tuple[str, str]:
    """Image id and reason, without the place of the data set on this machine."""
    return job.table.image_ids[row], reason.replace(job.place(row), job.table.image_ids[row])


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
    needed -= sum(path.stat().st_size for path in job.folder.iterdir())  # what a killed build has left
    free = shutil.disk_usage(job.folder).free
    if needed > free:
        msg = (
            f"Expected {job.folder.parent.parent} to have {needed / 1e9:.1f} GB free, got {free / 1e9:.1f} GB. "
            "Set FEDMLIC_HOME to a larger disk or choose a smaller image size."
        )
        raise InputError(msg)


def _row_order(table: Table) -> NDArray[np.int64]:
    """Table rows in stored order: split, then owner, then image id."""
    rank = {split: place for place, split in enumerate(SPLITS)}
    keys = [(rank[s], int(o), i) for s, o, i in zip(table.splits, table.owners, table.image_ids, strict=True)]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def _draw(job: _Job, rows: NDArray[np.int64]) -> Drawn:
    dataset = job.dataset
    shape = (len(rows), *dataset.image_shape)
    if dataset.images is not None:
        return Drawn(_checked(dataset.images(rows), shape), {})
    out = np.zeros(shape, dtype=np.uint8)
    problems = {}
    for place, row in enumerate(rows.tolist()):
        try:
            out[place] = _checked(dataset.image(row), dataset.image_shape)
        except InputError as error:
            problems[place] = str(error)
    return Drawn(out, problems)


def _checked(image: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.shape != shape:
        msg = f"Expected images to be uint8 {list(shape)}, got {image.dtype} {list(image.shape)}."
        raise InputError(msg)
    return image


def _write_rows(job: _Job) -> None:
    table, order, folder = job.table, job.order, job.folder
    write_labels(folder, "labels", _label_blocks(table, order), table.labels.shape[1])
    owners, owner_names = _owners(job)
    np.save(folder / "owners.npy", owners)
    _write_json(folder / "owner_names.json", owner_names)
    _write_json(folder / "image_ids.json", [table.image_ids[row] for row in order.tolist()])
    if table.objects is not None:
        objects = table.objects.take(order)
        np.savez(folder / "objects.npz", row=objects.row, label=objects.label, box=objects.box, area=objects.area)
    if table.flags is not None:
        flags = table.flags.take(order)
        np.savez(folder / "flags.npz", row=flags.row, label=flags.label, bits=flags.bits)


def _label_blocks(table: Table, order: NDArray[np.int64]) -> Iterator[NDArray[np.int8]]:
    """The label matrix in stored order, block by block: a second whole one may not fit into memory."""
    num_rows = max(1, LABEL_BLOCK_ENTRIES // max(1, table.labels.shape[1]))
    for start in range(0, len(order), num_rows):
        yield table.labels[order[start : start + num_rows]]


def _owners(job: _Job) -> tuple[NDArray[np.int64], list[str]]:
    """Owners in stored order and their names; without gaps where rows left out were all that an owner had."""
    owners = job.table.owners[job.order].astype(np.int64)
    names = job.table.owner_names
    if len(job.order) == len(job.table.image_ids):
        return owners, names
    kept = np.unique(owners[owners != NO_OWNER])
    return np.where(owners == NO_OWNER, NO_OWNER, np.searchsorted(kept, owners)), [
        names[owner] for owner in kept.tolist() if names
    ]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def _write_manifest(job: _Job, key: str, report: Mapping[str, Any], left_out: int) -> None:
    """Describe every file, wait until all are on the disk, and only then write the manifest."""
    dataset, table, folder = job.dataset, job.table, job.folder
    (folder / "manifest.json").unlink(missing_ok=True)  # of a build that was killed behind this point
    tally = Counter(table.splits[row] for row in job.order.tolist())
    counts = [tally[split] for split in SPLITS]
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
        "report": dict(report),
        **({"left_out": left_out} if left_out else {}),
        **({"label_ids": list(dataset.label_ids)} if dataset.label_ids else {}),
        **({"parents": list(dataset.parents)} if dataset.parents else {}),
        **({"own": True} if dataset.own else {}),
        **({"code": dict(dataset.code)} if dataset.code else {}),
        "files": {path.name: _describe(path) for path in sorted(folder.iterdir())},
    }
    for path in folder.iterdir():
        sync(path)
    _write_json(folder / "manifest.json", {**manifest, "sha256": seal(manifest)})
    sync(folder / "manifest.json")
    sync(folder)


def _describe(path: Path) -> dict[str, Any]:
    about: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r")
        about |= {"shape": list(array.shape), "dtype": str(array.dtype)}
    return about


def load_corpus(path: Path) -> Corpus:
    """Open an existing corpus folder after checking it.

    Checked are the schema, every file's presence, size, shape and type, and the hash of
    every file of at most 4 MiB. Larger files are compared with their hash when they are first
    read, and images one by one (``fedmlic.stores``).

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
        files = WrittenFiles(path, manifest["files"])
        for name, about in manifest["files"].items():
            _check_file(path / name, about, files)
        num_images, storage = manifest["num_images"], manifest["image"]["storage"]
        height, width, channels = manifest["image"]["shape"]
        images = Images(path, (num_images, height, width, channels), storage, files)
        corpus = Corpus(path, manifest, open_labels(path, "labels", files), images)
        _check_shapes(corpus)
        if images.hashed:  # those of earlier versions have no seal either
            check_seal(manifest)
    except DamagedError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        check_unreadable(path, error)
        raise _damaged(path, str(error) or type(error).__name__) from error
    return corpus


def open_hashed(corpus: Corpus, progress: Progress | None = None) -> Corpus:
    """The corpus with a hash of every image; one of an earlier version is compared as a whole, then gets them.

    Raises:
        DamagedError: it is not what was written.
    """
    if corpus.images.hashed:
        return corpus
    corpus.files.check(*corpus.files.files)
    hashes = _image_hashes(corpus.path, corpus.manifest, progress)
    try:
        with _replacing(corpus.path / IMAGE_HASHES) as new, new.open("wb") as file:
            np.save(file, hashes)
        manifest = dict(corpus.manifest)
        manifest["files"] = {**manifest["files"], IMAGE_HASHES: _describe(corpus.path / IMAGE_HASHES)}
        with _replacing(corpus.path / "manifest.json") as new:
            _write_json(new, {**manifest, "sha256": seal(manifest)})
    except OSError:
        return corpus  # a folder that is only for reading: it is compared as a whole each time
    return load_corpus(corpus.path)


def damaged_rows(path: Path) -> list[int]:
    """Rows of a corpus folder whose stored pixels are not what was written."""
    found = _image_hashes(path, _read_json(path / "manifest.json"))
    return np.flatnonzero(found != np.load(path / IMAGE_HASHES)).tolist()


def _image_hashes(path: Path, manifest: Mapping[str, Any], progress: Progress | None = None) -> NDArray[np.uint64]:
    """``content_hash`` of every stored image."""
    count, storage = manifest["num_images"], manifest["image"]["storage"]
    hashes = np.zeros(count, dtype=np.uint64)
    if storage == "jpeg":
        blob: NDArray[np.uint8] = np.memmap(path / PIXELS["jpeg"], np.uint8, "r")
        offsets = np.load(path / "images.offsets.npy")
    else:
        blob = np.load(path / PIXELS["raw"], mmap_mode="r").reshape(-1)
        offsets = np.arange(count + 1) * (blob.size // count)
    for start in range(0, count, BLOCK_IMAGES):
        rows = range(start, min(start + BLOCK_IMAGES, count))
        hashes[rows.start : rows.stop] = [content_hash(blob[offsets[row] : offsets[row + 1]].data) for row in rows]
        if progress is not None:
            progress(rows.stop, count)
    return hashes


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name for a block; what was written there replaces ``path`` if the block ends well."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")  # others may write the same beside us
    try:
        yield new
        sync(new)
        new.replace(path)
        sync(path.parent)
    finally:
        new.unlink(missing_ok=True)


def _damaged(path: Path, reason: str) -> DamagedError:
    return DamagedError(
        f"Expected {path} to be a complete corpus, got: {reason}. Delete that folder to have it built again."
    )


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    if manifest["schema"] != SCHEMA or manifest["schema_version"] != SCHEMA_VERSION:
        msg = f"schema {manifest['schema']} version {manifest['schema_version']}, not {SCHEMA} {SCHEMA_VERSION}"
        raise ValueError(msg)
    key = corpus_key(manifest["name"], manifest["version"], manifest["identity"])
    if manifest["key"] != _stored_key(key, manifest["image"]["storage"], partial=manifest.get("left_out", 0) > 0):
        msg = f"its manifest describes corpus {key} but is marked {manifest['key']}"
        raise ValueError(msg)
    check_states(manifest["states"])


def _check_file(path: Path, about: Mapping[str, Any], files: WrittenFiles) -> None:
    size = path.stat().st_size
    if size != about["bytes"]:
        msg = f"{path.name} has {size} bytes where {about['bytes']} were written"
        raise ValueError(msg)
    if size <= SMALL_BYTES:
        files.check(path.name)
    if path.suffix == ".npy":
        array = open_array(path)
        if [list(array.shape), str(array.dtype)] != [about["shape"], about["dtype"]]:
            msg = f"{path.name} is {array.dtype} {list(array.shape)}, not {about['dtype']} {about['shape']}"
            raise ValueError(msg)


def _check_shapes(corpus: Corpus) -> None:
    """What the manifest says of the whole must be what it says of the parts."""
    files, count = corpus.manifest["files"], corpus.num_images
    expected: dict[str, list[int]] = {
        "owners.npy": [count],
        **({IMAGE_HASHES: [count]} if corpus.images.hashed else {}),
    }
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
