"""FLAIR for TensorFlow Federated: ``train|val|test/<user>.tfrecords`` and ``label_to_index.json``.

An example holds ``image/encoded_jpeg``, ``labels`` and ``fine_grained_labels`` (indices).
There are no image ids: an image is named by its user and its place in the file.

Source: github.com/apple/ml-flair, ``prepare_tfrecords.py``.
"""

from __future__ import annotations

import functools
import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedmlic.files import files_sha256, list_files, stamps_sha256
from fedmlic.formats.flair_records import FIELDS, KINDS, EntryList, Layout, Records, is_numbering
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

    A damaged ``label_to_index.json`` and damaged records are ``problems`` of the records.
    """
    problems = Problems(f"Expected TFRecord files of FLAIR below {root}", complete=True)
    names = problems.attempt(_label_names, root / LABEL_INDEX, problems) or {}
    stamps = {name: stamp for name, stamp in list_files(root, depth=1).items() if name.endswith(SUFFIX)}
    read = functools.cache(lambda: _read(root, names, sorted(name for name in stamps if "/" in name), problems))

    def pixels(record: int, size: int, channels: int, resize: Resize) -> NDArray[np.uint8]:
        _, images = read()
        path, span = images[record]
        with path.open("rb") as file:
            file.seek(span.start)
            return decode(io.BytesIO(file.read(span.length)), size, channels, resize)

    return Layout(
        name="tfrecords",
        names=lambda kind: names.get(kind, []),
        records=lambda: read()[0],
        pixels=pixels,
        identity={
            "annotations": files_sha256(root, filter(Path.is_file, [root / LABEL_INDEX])),
            "files": stamps_sha256(stamps),
        },
    )


def _label_names(path: Path, problems: Problems) -> dict[str, list[str]]:
    """The names of each kind in the order of their numbers; a kind whose numbers are wrong is left out."""
    index = read_json(path)
    names = {}
    for kind, field in FIELDS.items():
        places = index.get(field) if isinstance(index, dict) else None
        if is_numbering(places):
            names[kind] = sorted(places, key=places.__getitem__)
        else:
            problems.add(
                f"Expected {path} to number {field!r} from 0 without gaps, got {str(places)[:80]}. Make it again."
            )
    return names


def _read(
    root: Path, names: dict[str, list[str]], files: list[str], problems: Problems
) -> tuple[Records, list[tuple[Path, Span]]]:
    lists = {kind: EntryList(names.get(kind, [])) for kind in KINDS}
    found = Records([], [], [], {}, [], {})
    images: list[tuple[Path, Span]] = []
    empty = 0
    for name in files:
        partition, _, file = name.partition("/")
        user = file.removesuffix(SUFFIX)
        examples = read_examples(root / name, problems)
        empty += not examples
        for place, example in examples.items():
            where = f"{root / name}, record {place}"
            if IMAGE not in example.spans:
                problems.add(f"{where}: no feature {IMAGE!r}")
                continue
            for kind, listed in lists.items():
                listed.add(
                    _labels(example.integers.get(FIELDS[kind], []), names.get(kind), FIELDS[kind], where, problems)
                )
            found.image_ids.append(f"{user}/{place:05d}")
            found.users.append(user)
            found.partitions.append(partition)
            found.where.append(where)
            images.append((root / name, example.spans[IMAGE]))
    entries = {kind: entries.finish() for kind, entries in lists.items()}
    records = replace(found, entries=entries, notes={"empty_users": empty}, problems=problems.lines)
    return records, images


def _labels(codes: list[int], names: list[str] | None, field: str, where: str, problems: Problems) -> list[str]:
    """The names of the labels; none where the numbering of labels is not known."""
    if names is None:
        return []
    wrong = [code for code in codes if not 0 <= code < len(names)]
    if wrong:
        problems.add(f"{where}: {field} {wrong} are no indices below {len(names)}")
    return [names[code] for code in codes if 0 <= code < len(names)]
