"""FLAIR as its downloader leaves it: one JSON list and a folder of JPEG files.

``labels_and_metadata.json`` holds 429,078 objects with ``image_id``, ``user_id``,
``partition``, ``labels`` and ``fine_grained_labels``; the images are
``small_images/<image_id>.jpg`` (256 x 256) or ``raw_images/<image_id>.jpg``.

Source: github.com/apple/ml-flair, ``download_dataset.py``.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedmlic.errors import InputError
from fedmlic.files import Stamp, check_present, files_sha256, list_files, stamps_sha256
from fedmlic.formats.flair_records import FIELDS, KINDS, EntryList, Layout, Records
from fedmlic.formats.json_list import read_json_list
from fedmlic.images import decode
from fedmlic.problems import Problems

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedmlic.images import Resize

METADATA = "labels_and_metadata.json"


def open_flair_files(root: Path, images: Literal["small", "raw"]) -> Layout:
    """The layout of a download in ``root``.

    Args:
        root: the folder that holds ``labels_and_metadata.json``.
        images: which folder of images to use.

    A damaged JSON file and missing images are ``problems`` of the records.
    """
    folder = root / f"{images}_images"
    stamps = list_files(folder)
    records = functools.cache(lambda: _read(root / METADATA, folder, stamps))
    found: Records = records()

    def pixels(record: int, size: int, channels: int, resize: Resize) -> NDArray[np.uint8]:
        return decode(folder / f"{found.image_ids[record]}.jpg", size, channels, resize)

    return Layout(
        name="files",
        names=lambda kind: found.entries[kind].names,
        records=records,
        pixels=pixels,
        identity={
            "annotations": files_sha256(root, filter(Path.is_file, [root / METADATA])),
            "images": stamps_sha256(stamps, [f"{image_id}.jpg" for image_id in found.image_ids]),
            "folder": images,
        },
    )


def _read(path: Path, folder: Path, stamps: dict[str, Stamp]) -> Records:
    problems = Problems(f"Expected every object of {path} to describe one image")
    texts: dict[str, list[str]] = {"image_id": [], "user_id": [], "partition": []}
    lists = {kind: EntryList() for kind in KINDS}
    try:
        for number, item in enumerate(read_json_list(path)):
            wrong = _fault(item)
            if wrong:
                problems.add(f"object {number}: {wrong}")
                continue
            for name, column in texts.items():
                column.append(str(item[name]))
            for kind, entries in lists.items():
                entries.add(item[FIELDS[kind]])
    except InputError as error:
        problems.take(error)
    names = [f"{image_id}.jpg" for image_id in texts["image_id"]]
    problems.attempt(check_present, "flair", names, stamps, folder)
    return Records(
        image_ids=texts["image_id"],
        users=texts["user_id"],
        partitions=texts["partition"],
        entries={kind: entries.finish() for kind, entries in lists.items()},
        where=[str(folder / name) for name in names],
        notes={},
        problems=problems.lines,
    )


def _fault(item: Any) -> str:  # noqa: ANN401  (JSON is untyped)
    """What is wrong with one object, or nothing."""
    if not isinstance(item, dict):
        return f"it is a {type(item).__name__}, no object"
    for name in ("image_id", "user_id", "partition"):
        value = item.get(name)
        if type(value) is not str and (type(value) is not int or name == "partition"):
            return f"{name} is {value!r}, no text"
    for name in FIELDS.values():
        value = item.get(name)
        if type(value) is not list or not all(type(label) is str for label in value):
            return f"{name} is {value!r}, no list of texts"
    return ""
