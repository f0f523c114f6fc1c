"""FLAIR in one HDF5 file, in any of the four layouts that its published scripts write.

* by user, names: ``/<split>/<user>/{images, image_ids, labels, fine_grained_labels}``, labels
  joined with ``|`` (github.com/apple/ml-flair, ``prepare_dataset.py``);
* by user, sparse: ``labels_row``, ``labels_col`` and the same of fine labels in place of names,
  numbered by ``/metadata/label_mapping`` (github.com/apple/pfl-research, ``download_preprocess.py``);
* central, of either script: ``/<split>/<image>/{image, labels, fine_grained_labels, user_id}``.

In the central file of the second script ``label_mapping`` holds counts although it is named
like the numbering: only its names are used. Which layout a file has is read off its keys.
"""

from __future__ import annotations

import functools
import importlib
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedmlic.errors import InputError, installing
from fedmlic.files import list_files, stamps_sha256
from fedmlic.formats.flair_records import FIELDS, Entries, EntryList, Layout, Records, is_numbering
from fedmlic.images import from_pixels
from fedmlic.problems import Problems

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.images import Resize

    Sparse = dict[str, list[tuple[NDArray[np.int64], NDArray[np.int64]]]]

SUFFIXES = (".h5", ".hdf5")
NAMES = {
    "coarse": ("label_counter", "label_mapping"),
    "fine": ("fine_grained_label_counter", "fine_grained_label_mapping"),
}
"""Where in ``/metadata`` the names of each kind stand, by the first and by the second script."""

DAMAGED = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What h5py raises for a damaged file, and what reading raises where a key holds something else than expected."""

Form = Literal["names", "sparse", "central"]


def open_flair_hdf5(path: Path, kinds: tuple[str, ...]) -> Layout:
    """The layout of one HDF5 file.

    Args:
        path: the file.
        kinds: of labels to read; each takes about ten seconds for all 51,414 users.

    What is wrong with single groups is among the ``problems`` of the records.

    Raises:
        InputError: h5py is not installed, or the file is none of FLAIR's.
    """
    store = _Store(path)
    form = store.form()
    problems = Problems(f"Expected {path} to hold images and labels of FLAIR")
    names = {kind: problems.attempt(_label_names, store, kind, form) for kind in kinds}
    read = functools.cache(lambda: _read(store, form, names, problems))

    def pixels(record: int, size: int, channels: int, resize: Resize) -> NDArray[np.uint8]:
        place, row = read()[1][record]
        return from_pixels(store.image(place, row), size, channels, resize)

    stamps = list_files(path.parent)
    return Layout(
        name=f"hdf5 {form}",
        names=lambda kind: names[kind],
        records=lambda: read()[0],
        pixels=pixels,
        identity={"file": stamps_sha256(stamps, [path.name])},
    )


class _Store:
    """An open HDF5 file. h5py lets one thread in at a time."""

    def __init__(self, path: Path) -> None:
        try:
            h5py = importlib.import_module("h5py")
        except ImportError as error:
            msg = f"Expected h5py to be installed to read {path}, got: {error}. Run: {installing('hdf5')}."
            raise InputError(msg) from error
        self.path = path
        try:
            self.file = h5py.File(path, "r")
        except DAMAGED as error:
            msg = f"Expected {path} to be an HDF5 file, got: {error}. Make it again."
            raise InputError(msg) from error
        self.lock = threading.Lock()

    def partitions(self) -> list[str]:
        """Names of the groups of images.

        Raises:
            InputError: the file is damaged.
        """
        try:
            return sorted(set(self.file) - {"metadata"})
        except DAMAGED as error:
            msg = f"Expected {self.path} to be an undamaged HDF5 file, got: {error}. Make it again."
            raise InputError(msg) from error

    def form(self) -> Form:
        """Which layout the keys of the first group tell."""
        got = "no such group"
        try:
            got = f"{sorted(self.file)}"
            for partition in self.partitions():
                for group in _members(self.file[partition]).values():
                    keys = set(_members(group))
                    if "image" in keys:
                        return "central"
                    if "labels_row" in keys or "fine_grained_labels_row" in keys:
                        return "sparse"
                    if "images" in keys:
                        return "names"
        except DAMAGED as error:
            got = str(error)
        msg = (
            f"Expected {self.path} to hold groups like /train/<user>/images or /train/<image>/image, "
            f"got {got}. Make it with a script of ml-flair or pfl-research."
        )
        raise InputError(msg)

    def image(self, place: str, row: int) -> NDArray[np.uint8]:
        """uint8 ``[height, width, 3]``: a dataset, or a row of one."""
        try:
            with self.lock:
                stored = self.file[place]
                return np.asarray(stored[row] if row >= 0 else stored[()], dtype=np.uint8)
        except DAMAGED as error:
            msg = f"Expected an undamaged image at {place} of {self.path}, got: {error}. Make the file again."
            raise InputError(msg) from error


def _members(item: Any) -> Any:  # noqa: ANN401  (h5py has no types)
    """What a group holds; nothing where it is no group."""
    return item if hasattr(item, "keys") else {}


def _label_names(store: _Store, kind: str, form: Form) -> list[str] | None:
    """Names by code (sparse form), or sorted; ``None`` where the file has no list of them."""
    counter, mapping = (f"metadata/{name}" for name in NAMES[kind])
    key = "metadata"
    try:
        key = mapping if mapping in store.file else counter
        found = json.loads(store.file[key][()]) if key in store.file else None
    except (*DAMAGED, RecursionError) as error:
        msg = f"Expected /{key} of {store.path} to be a JSON object of names and numbers, got: {error}."
        raise InputError(msg) from error
    if found is None and form != "sparse":
        return None
    if found is None:
        msg = f"Expected {store.path} to hold /{mapping}, which numbers its labels, got none. Make it again."
        raise InputError(msg)
    if not isinstance(found, dict):
        msg = f"Expected /{key} of {store.path} to be a JSON object of names and numbers, got {str(found)[:80]}."
        raise InputError(msg)
    if form != "sparse":
        return sorted(found)
    if not is_numbering(found):
        got = str(found)[:80]
        msg = f"Expected /{key} of {store.path} to number labels from 0 without gaps, got {got}. Make it again."
        raise InputError(msg)
    return sorted(found, key=found.__getitem__)


@dataclass
class _Found:
    """What has been read so far."""

    ids: list[str] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    partitions: list[str] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    images: list[tuple[str, int]] = field(default_factory=list)
    empty_users: int = 0


def _read(
    store: _Store, form: Form, names: dict[str, list[str] | None], problems: Problems
) -> tuple[Records, list[tuple[str, int]]]:
    found = _Found()
    lists = {kind: EntryList(known) for kind, known in names.items()}
    sparse: Sparse = {kind: [] for kind in names}
    for partition in problems.attempt(store.partitions) or ():
        for key, group in _groups(store, partition, problems):
            place = f"/{partition}/{key}"
            try:
                if form == "central":
                    _central(group, place, found, lists)
                elif form == "names":
                    _user(group, place, found, lists)
                else:
                    _sparse_user(group, place, found, sparse, names)
            except KeyError as error:
                problems.add(f"{place}: {str(error).strip(chr(34))}")
            except DAMAGED as error:
                problems.add(f"{place}: {error}")
    entries = {
        kind: _joined(sparse[kind], names[kind] or []) if form == "sparse" else lists[kind].finish() for kind in names
    }
    notes = {"empty_users": found.empty_users}
    records = Records(found.ids, found.users, found.partitions, entries, found.where, notes, problems.lines)
    return records, found.images


def _groups(store: _Store, partition: str, problems: Problems) -> list[tuple[str, Any]]:
    """The groups of a partition."""
    try:
        return list(_members(store.file[partition]).items())
    except DAMAGED as error:
        problems.add(f"/{partition}: {error}")
        return []


def _ids(group: Any) -> list[str]:  # noqa: ANN401  (h5py has no types)
    """The image ids of one user, whose images fit them."""
    images, ids = group["images"], group["image_ids"][()]
    shape = images.shape
    if len(shape) != 4 or shape[3] != 3 or np.shape(ids) != shape[:1] or (shape[0] and 0 in shape):
        msg = f"images {shape} do not fit image_ids {np.shape(ids)}"
        raise ValueError(msg)
    _check_bytes(images)
    return _texts(ids, len(ids))


def _check_bytes(images: Any) -> None:  # noqa: ANN401
    if images.dtype != np.uint8:
        msg = f"images are {images.dtype}, not uint8"
        raise ValueError(msg)


def _add(place: str, ids: list[str], found: _Found) -> None:
    """Note the images of one user."""
    _, partition, user = place.split("/", 2)
    count = len(ids)
    found.empty_users += count == 0
    found.ids += ids
    found.users += [user] * count
    found.partitions += [partition] * count
    found.where += [f"{place}/images, row {row}" for row in range(count)]
    found.images += [(f"{place}/images", row) for row in range(count)]


def _user(group: Any, place: str, found: _Found, lists: dict[str, EntryList]) -> None:  # noqa: ANN401
    """Note the images of one user, whose labels are names."""
    ids = _ids(group)
    labels = {kind: _texts(group[FIELDS[kind]][()], len(ids)) for kind in lists}
    _add(place, ids, found)
    for kind, texts in labels.items():
        for text in texts:
            lists[kind].add(_split(text))


def _sparse_user(
    group: Any,  # noqa: ANN401
    place: str,
    found: _Found,
    sparse: Sparse,
    names: dict[str, list[str] | None],
) -> None:
    """Note the images of one user, whose labels are numbers."""
    ids, start = _ids(group), len(found.ids)
    # Without a numbering, which is a problem already, numbers mean nothing.
    labels = {kind: _sparse(group, kind, len(ids), len(known)) for kind, known in names.items() if known is not None}
    _add(place, ids, found)
    for kind, (rows, codes) in labels.items():
        sparse[kind].append((rows + start, codes))


def _central(group: Any, place: str, found: _Found, lists: dict[str, EntryList]) -> None:  # noqa: ANN401
    """Note one image of a central file."""
    _, partition, image_id = place.split("/", 2)
    user = _text(group["user_id"][()])
    labels = {kind: _split(_text(group[FIELDS[kind]][()])) for kind in lists}
    shape = group["image"].shape
    if len(shape) not in {2, 3} or (len(shape) == 3 and shape[2] != 3) or 0 in shape:
        msg = f"image has shape {shape}"
        raise ValueError(msg)
    _check_bytes(group["image"])
    found.ids.append(image_id)
    found.users.append(user)
    found.partitions.append(partition)
    found.where.append(place)
    found.images.append((f"{place}/image", -1))
    for kind, entries in lists.items():
        entries.add(labels[kind])


def _text(value: object) -> str:
    if not isinstance(value, bytes | str):
        msg = f"{value!r:.40} is no text"
        raise ValueError(msg)  # noqa: TRY004  (the file is wrong, not the program)
    return value.decode() if isinstance(value, bytes) else value


def _texts(values: NDArray[Any], count: int) -> list[str]:
    if np.shape(values) != (count,):
        msg = f"{count} images have texts of shape {np.shape(values)}"
        raise ValueError(msg)
    return [_text(value) for value in values.tolist()]


def _split(text: str) -> list[str]:
    return text.split("|") if text else []


def _sparse(group: Any, kind: str, count: int, num_labels: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # noqa: ANN401
    name = FIELDS[kind]
    rows, codes = (group[f"{name}_{axis}"][()] for axis in ("row", "col"))
    ends = ((rows, count), (codes, num_labels))
    fits = np.shape(rows) == np.shape(codes) and all(
        # An array without entries may have any type.
        np.ndim(part) == 1 and (not part.size or (part.dtype.kind in "iu" and 0 <= part.min() <= part.max() < end))
        for part, end in ends
    )
    if not fits:
        msg = f"{name}_row and {name}_col do not fit {count} images and {num_labels} labels"
        raise ValueError(msg)
    rows, codes = rows.astype(np.int64), codes.astype(np.int64)
    order = np.argsort(rows, kind="stable")
    return rows[order], codes[order]


def _joined(parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]], names: list[str]) -> Entries:
    none = np.empty(0, dtype=np.int64)
    rows = np.concatenate([none, *(rows for rows, _ in parts)])
    codes = np.concatenate([none, *(codes for _, codes in parts)])
    return Entries(rows, codes, names)
