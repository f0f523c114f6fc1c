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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedmlic.errors import InputError
from fedmlic.files import list_files, stamps_sha256
from fedmlic.formats.flair_records import FIELDS, Entries, EntryList, Layout, Records
from fedmlic.images import from_pixels
from fedmlic.problems import Problems

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.images import Resize

SUFFIXES = (".h5", ".hdf5")
NAMES = {
    "coarse": ("label_counter", "label_mapping"),
    "fine": ("fine_grained_label_counter", "fine_grained_label_mapping"),
}
"""Where in ``/metadata`` the names of each kind stand, by the first and by the second script."""

Form = Literal["names", "sparse", "central"]


def open_flair_hdf5(path: Path, kinds: tuple[str, ...]) -> Layout:
    """The layout of one HDF5 file.

    Args:
        path: the file.
        kinds: of labels to read; each takes about ten seconds for all 51,414 users.

    Raises:
        InputError: h5py is not installed, or the file is none of FLAIR's.
    """
    store = _Store(path)
    form = store.form()
    names = {kind: _label_names(store, kind, form) for kind in kinds}
    read = functools.cache(lambda: _read(store, form, kinds, names))

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
            msg = f"Expected h5py to be installed to read {path}, got: {error}. Run: pip install 'fedmlic[hdf5]'."
            raise InputError(msg) from error
        self.path = path
        try:
            self.file = h5py.File(path, "r")
        except OSError as error:
            msg = f"Expected {path} to be an HDF5 file, got: {error}. Make it again."
            raise InputError(msg) from error
        self.lock = threading.Lock()

    def partitions(self) -> list[str]:
        """Names of the groups of images."""
        return sorted(set(self.file) - {"metadata"})

    def form(self) -> Form:
        """Which layout the keys of the first group tell."""
        for partition in self.partitions():
            for group in self.file[partition].values():
                keys = set(group) if hasattr(group, "keys") else set()
                if "image" in keys:
                    return "central"
                if "labels_row" in keys or "fine_grained_labels_row" in keys:
                    return "sparse"
                if "images" in keys:
                    return "names"
        msg = (
            f"Expected {self.path} to hold groups like /train/<user>/images or /train/<image>/image, "
            f"got {sorted(self.file)}. Make it with a script of ml-flair or pfl-research."
        )
        raise InputError(msg)

    def image(self, place: str, row: int) -> NDArray[np.uint8]:
        """uint8 ``[height, width, 3]``: a dataset, or a row of one."""
        with self.lock:
            stored = self.file[place]
            return np.asarray(stored[row] if row >= 0 else stored[()], dtype=np.uint8)


def _label_names(store: _Store, kind: str, form: Form) -> list[str] | None:
    """Names by code (sparse form), or sorted; ``None`` where the file has no list of them."""
    counter, mapping = (f"metadata/{name}" for name in NAMES[kind])
    key = mapping if mapping in store.file else counter
    if key not in store.file:
        if form == "sparse":
            msg = f"Expected {store.path} to hold /{mapping}, which numbers its labels, got none. Make it again."
            raise InputError(msg)
        return None
    try:
        found = json.loads(store.file[key][()])
        names = sorted(found) if form != "sparse" else sorted(found, key=found.__getitem__)
        gaps = form == "sparse" and [found[name] for name in names] != list(range(len(names)))
    except (ValueError, TypeError, AttributeError) as error:
        msg = f"Expected /{key} of {store.path} to be a JSON object of names and numbers, got: {error}."
        raise InputError(msg) from error
    if gaps:
        msg = f"Expected /{key} of {store.path} to number labels from 0 without gaps, got {found}. Make it again."
        raise InputError(msg)
    return names


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
    store: _Store, form: Form, kinds: tuple[str, ...], names: dict[str, list[str] | None]
) -> tuple[Records, list[tuple[str, int]]]:
    problems = Problems(f"Expected {store.path} to hold images and labels of FLAIR")
    found = _Found()
    lists = {kind: EntryList(names[kind]) for kind in kinds}
    sparse: dict[str, list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = {kind: [] for kind in kinds}
    for partition in store.partitions():
        for key, group in store.file[partition].items():
            place = f"/{partition}/{key}"
            try:
                if form == "central":
                    _central(group, place, found, lists)
                else:
                    start = len(found.ids)
                    count = _user(group, place, found)
                    for kind in kinds:
                        if form == "names":
                            for text in _texts(group[FIELDS[kind]][()], count):
                                lists[kind].add(_split(text))
                        else:
                            rows, codes = _sparse(group, kind, count, len(names[kind] or ()))
                            sparse[kind].append((rows + start, codes))
            except (KeyError, ValueError) as error:
                problems.add(f"{place}: {error}")
    problems.finish()
    entries = {
        kind: _joined(sparse[kind], names[kind] or []) if form == "sparse" else lists[kind].finish() for kind in kinds
    }
    notes = {"empty_users": found.empty_users}
    return Records(found.ids, found.users, found.partitions, entries, found.where, notes), found.images


def _user(group: Any, place: str, found: _Found) -> int:  # noqa: ANN401  (h5py has no types)
    """Note the images of one user; how many there are."""
    _, partition, user = place.split("/", 2)
    shape, ids = group["images"].shape, group["image_ids"][()]
    if len(shape) != 4 or len(ids) != shape[0]:
        msg = f"images {shape} do not fit {len(ids)} image_ids"
        raise ValueError(msg)
    count = len(ids)
    found.empty_users += count == 0
    found.ids += list(_texts(ids, count))
    found.users += [user] * count
    found.partitions += [partition] * count
    found.where += [f"{place}/images, row {row}" for row in range(count)]
    found.images += [(f"{place}/images", row) for row in range(count)]
    return count


def _central(group: Any, place: str, found: _Found, lists: dict[str, EntryList]) -> None:  # noqa: ANN401
    """Note one image of a central file."""
    _, partition, image_id = place.split("/", 2)
    user = _text(group["user_id"][()])
    labels = {kind: _split(_text(group[FIELDS[kind]][()])) for kind in lists}
    if len(group["image"].shape) not in {2, 3}:
        msg = f"image has shape {group['image'].shape}"
        raise ValueError(msg)
    found.ids.append(image_id)
    found.users.append(user)
    found.partitions.append(partition)
    found.where.append(place)
    found.images.append((f"{place}/image", -1))
    for kind, entries in lists.items():
        entries.add(labels[kind])


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _texts(values: NDArray[Any], count: int) -> Iterator[str]:
    if len(values) != count:
        msg = f"{count} images have {len(values)} texts"
        raise ValueError(msg)
    return map(_text, values.tolist())


def _split(text: str) -> list[str]:
    return text.split("|") if text else []


def _sparse(group: Any, kind: str, count: int, num_labels: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # noqa: ANN401
    name = FIELDS[kind]
    rows, codes = (group[f"{name}_{axis}"][()].astype(np.int64) for axis in ("row", "col"))
    if rows.shape != codes.shape or (rows.size and (rows.max() >= count or codes.max() >= num_labels)):
        msg = f"{name}_row and {name}_col do not fit {count} images and {num_labels} labels"
        raise ValueError(msg)
    order = np.argsort(rows, kind="stable")
    return rows[order], codes[order]


def _joined(parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]], names: list[str]) -> Entries:
    none = np.empty(0, dtype=np.int64)
    rows = np.concatenate([none, *(rows for rows, _ in parts)])
    codes = np.concatenate([none, *(codes for _, codes in parts)])
    return Entries(rows, codes, names)
