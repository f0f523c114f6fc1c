"""FLAIR for TensorFlow Federated: ``train|val|test/<user>.tfrecords`` and ``label_to_index.json``.

An example holds ``image/encoded_jpeg``, ``labels`` and ``fine_grained_labels`` (indices).
There are no image ids: an image is named by its user and its place in the file.

Source: github.com/apple/ml-flair, ``prepare_tfrecords.py``.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING

from fedmlic.errors import InputError
from fedmlic.files import files_sha256, list_files, stamps_sha256
from fedmlic.formats.flair_records import FIELDS, KINDS, EntryList, Layout, Records
from fedmlic.formats.reading import read_json
from fedmlic.formats.tfrecord import Span, read_examples
from fedmlic.images import decode
from fedmlic.problems import Problems

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedmlic.images import Resize

LABEL_INDEX = "label_to_index.json"
IMAGE = "image/encoded_jpeg"
SUFFIX = ".tfrecords"


def open_flair_tfrecords(root: Path) -> Layout:
    """The layout of TFRecord files in ``root``.

    Raises:
        InputError: ``label_to_index.json`` is not what it should be.
    """
    names = _label_names(root / LABEL_INDEX)
    stamps = {name: stamp for name, stamp in list_files(root, depth=1).items() if name.endswith(SUFFIX)}
    read = functools.cache(lambda: _read(root, names, sorted(name for name in stamps if "/" in name)))

    def pixels(record: int, size: int, channels: int, resize: Resize) -> NDArray[np.uint8]:
        _, images = read()
        path, span = images[record]
        with path.open("rb") as file:
            file.seek(span.start)
            return decode(io.BytesIO(file.read(span.length)), size, channels, resize)

    return Layout(
        name="tfrecords",
        names=lambda kind: names[kind],
        records=lambda: read()[0],
        pixels=pixels,
        identity={
            "annotations": files_sha256(root, [root / LABEL_INDEX]),
            "files": stamps_sha256(stamps),
        },
    )


def _label_names(path: Path) -> dict[str, list[str]]:
    index = read_json(path)
    names = {}
    for kind, field in FIELDS.items():
        places = index.get(field) if isinstance(index, dict) else None
        if not isinstance(places, dict) or sorted(places.values()) != list(range(len(places))):
            msg = f"Expected {path} to number {field!r} from 0 without gaps, got {str(places)[:80]}. Make it again."
            raise InputError(msg)
        names[kind] = sorted(places, key=places.__getitem__)
    return names


def _read(root: Path, names: dict[str, list[str]], files: list[str]) -> tuple[Records, list[tuple[Path, Span]]]:
    problems = Problems(f"Expected TFRecord files of FLAIR below {root}")
    lists = {kind: EntryList(names[kind]) for kind in KINDS}
    found = Records([], [], [], {}, [], {})
    images: list[tuple[Path, Span]] = []
    empty = 0
    for name in files:
        partition, _, file = name.partition("/")
        try:
            examples = read_examples(root / name)
        except InputError as error:
            problems.add(str(error))
            continue
        empty += not examples
        for place, example in enumerate(examples):
            where = f"{root / name}, record {place}"
            if IMAGE not in example.spans:
                problems.add(f"{where}: no feature {IMAGE!r}")
                continue
            for kind, listed in lists.items():
                codes = example.integers.get(FIELDS[kind], [])
                wrong = [code for code in codes if not 0 <= code < len(names[kind])]
                if wrong:
                    problems.add(f"{where}: {FIELDS[kind]} {wrong} are no indices below {len(names[kind])}")
                listed.add([names[kind][code] for code in codes if code not in wrong])
            user = file.removesuffix(SUFFIX)
            found.image_ids.append(f"{user}/{place:05d}")
            found.users.append(user)
            found.partitions.append(partition)
            found.where.append(where)
            images.append((root / name, example.spans[IMAGE]))
    problems.finish()
    entries = {kind: entries.finish() for kind, entries in lists.items()}
    notes = {"empty_users": empty}
    records = Records(found.image_ids, found.users, found.partitions, entries, found.where, notes)
    return records, images
