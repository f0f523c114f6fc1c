"""Open Images' CSV files: image-level labels, lists of images, names and hierarchy of classes.

All columns are read as texts by pyarrow, block by block. Image ids are 16 hexadecimal digits
and become 64-bit numbers; labels become places in a list.

Source: storage.googleapis.com/openimages (V3 to V7) and the README of its V3 release.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedmlic.errors import InputError, nearest
from fedmlic.formats.fields import short, text_fault
from fedmlic.formats.reading import read_json, read_text
from fedmlic.problems import Problems

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_BYTES = 1 << 24
MACHINE_SOURCE = "machine"
SUBSETS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
"""Split of each name that files and folders give to one."""

NO_LABEL = -1
"""Column of a label that was not asked for."""

_NIBBLES = np.full(256, 255, dtype=np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16)


def read_blocks(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Chosen columns of a CSV file as pyarrow arrays of texts, a block at a time.

    Raises:
        InputError: the file has other columns, or a line has too many or too few cells.
    """
    import pyarrow as pa  # only a build reads these
    from pyarrow import csv as arrow_csv

    try:
        reader = arrow_csv.open_csv(
            path,
            read_options=arrow_csv.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()),
                include_columns=list(columns),
                strings_can_be_null=False,
            ),
        )
        for batch in reader:
            yield {name: batch.column(name) for name in columns}
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        msg = f"Expected {path} to be a CSV file with columns {', '.join(columns)}, got: {error}. Download it again."
        raise InputError(msg) from error


def parse_ids(texts: Any) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:  # noqa: ANN401  (pyarrow has no types)
    """uint64 numbers of image ids, and the places of texts that are no ids (their number is 0)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = np.asarray(pc.equal(pc.binary_length(texts), 16))
    padded = pc.if_else(pa.array(whole), texts, "0" * 16).cast(pa.binary(16))
    content = np.frombuffer(padded.buffers()[1], dtype=np.uint8)
    content = content[padded.offset * 16 : (padded.offset + len(padded)) * 16].reshape(-1, 16)
    nibbles = _NIBBLES[content]
    wrong = np.flatnonzero(~whole | (nibbles > 15).any(axis=1))
    numbers = np.zeros(len(nibbles), dtype=np.uint64)
    for place in range(16):
        numbers = (numbers << np.uint64(4)) | nibbles[:, place].astype(np.uint64)
    numbers[wrong] = 0
    return numbers, wrong


def id_text(number: int) -> str:
    """The 16 digits of an image id.

    >>> id_text(11)
    '000000000000000b'
    """
    return f"{number:016x}"


@dataclass
class Annotations:
    """Image-level labels of one split.

    Attributes:
        image: uint64 ``[rows]``.
        column: int32 ``[rows]``, or ``NO_LABEL``.
        confidence: float32 ``[rows]``; 0 or 1 where a person looked.
        machine: bool ``[rows]``: a program said so.
        sources: rows by who says so.
    """

    image: NDArray[np.uint64]
    column: NDArray[np.int32]
    confidence: NDArray[np.float32]
    machine: NDArray[np.bool_]
    sources: Counter[str] = field(default_factory=Counter)


def read_annotations(files: Sequence[Path], column_of: Mapping[str, int] | None, problems: Problems) -> Annotations:
    """All good rows of some label files.

    Args:
        files: CSV files with ImageID, Source, LabelName and Confidence.
        column_of: column of every class that exists, or ``NO_LABEL``; None if the classes are
            not known, so that no label can be wrong.
        problems: where to note files that cannot be read or hold no row, and ids, labels and
            confidences that cannot be.
    """
    parts = [_Block(np.empty(0, np.uint64), np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.bool_))]
    sources: Counter[str] = Counter()
    for path in files:
        own = problems.within(f"Expected image-level labels of Open Images in {path}")
        rows = own.attempt(_read_file, path, column_of, own, parts, sources)
        if rows == 0:
            own.add("no row")
    joined = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    return Annotations(joined[0], joined[1], joined[2], joined[3], sources)


def _read_file(
    path: Path, column_of: Mapping[str, int] | None, own: Problems, parts: list[_Block], sources: Counter[str]
) -> int:
    """Take in the blocks of one file; the number of its rows."""
    start = 2
    for block in read_blocks(path, ("ImageID", "Source", "LabelName", "Confidence")):
        parts.append(_annotation_block(block, start, column_of, own, sources))
        start += len(block["ImageID"])
    return start - 2


class _Block(NamedTuple):
    """The columns of ``Annotations`` for some rows."""

    image: NDArray[np.uint64]
    column: NDArray[np.int32]
    confidence: NDArray[np.float32]
    machine: NDArray[np.bool_]


def _annotation_block(
    block: dict[str, Any], start: int, column_of: Mapping[str, int] | None, problems: Problems, sources: Counter[str]
) -> _Block:
    """The good rows of a block that begins in row ``start`` of its file."""
    ids, wrong = parse_ids(block["ImageID"])
    for row in wrong.tolist():
        problems.add(f"row {start + row}: ImageID {block['ImageID'][row].as_py()!r} is not 16 hexadecimal digits")
    source_codes, source_names = _encoded(block["Source"])
    sources.update(
        dict(zip(source_names, np.bincount(source_codes, minlength=len(source_names)).tolist(), strict=True))
    )
    machine = np.array([name == MACHINE_SOURCE for name in source_names], dtype=np.bool_)[source_codes]
    for code in np.flatnonzero([bool(text_fault(name)) for name in source_names]).tolist():
        first = int((source_codes == code).argmax())
        problems.add(f"row {start + first}: Source {source_names[code]!r} {text_fault(source_names[code])}")
    label_codes, labels = _encoded(block["LabelName"])
    known = dict.fromkeys(labels, NO_LABEL) if column_of is None else column_of
    columns = np.array([known.get(label, NO_LABEL) for label in labels], dtype=np.int32)[label_codes]
    for code in np.flatnonzero([label not in known for label in labels]).tolist():
        first = int((label_codes == code).argmax())
        problems.add(f"row {start + first}: LabelName {labels[code]!r} is in no class description")
    value_codes, texts = _encoded(block["Confidence"])
    values = np.array([_confidence(text) for text in texts], dtype=np.float32)[value_codes]
    bad = ~(machine & (values >= 0) & (values <= 1)) & ~np.isin(values, (0, 1))
    for row in np.flatnonzero(bad).tolist():
        problems.add(
            f"row {start + row}: Confidence {block['Confidence'][row].as_py()!r} of source "
            f"{block['Source'][row].as_py()!r}; people say 0 or 1, machines a number between"
        )
    bad[wrong] = True
    return _Block(ids[~bad], columns[~bad], values[~bad], machine[~bad])


def _encoded(texts: Any) -> tuple[NDArray[np.int64], list[str]]:  # noqa: ANN401
    """Codes, and the texts they stand for."""
    coded = texts.dictionary_encode()
    return np.asarray(coded.indices, dtype=np.int64), coded.dictionary.to_pylist()


def _confidence(text: str) -> float:
    try:
        # Python's own rule takes 0_1 and digits of other scripts too.
        return float(text) if text.isascii() and "_" not in text else float("nan")
    except ValueError:
        return float("nan")


@dataclass(frozen=True)
class ImageList:
    """Lists of images with their authors and orientation.

    Attributes:
        image: uint64 ``[images]``.
        subset: of each image ``train``, ``val`` or ``test``.
        author: address of the author's profile, else the name; blank if unknown.
        turns: int8 ``[images]``: quarter turns counterclockwise that make it upright.
        unknown_rotation: how many have no rotation (the photograph is gone from Flickr).
    """

    image: NDArray[np.uint64]
    subset: list[str]
    author: list[str]
    turns: NDArray[np.int8]
    unknown_rotation: int


TURNS = {"0.0": 0, "90.0": 1, "180.0": 2, "270.0": 3, "0": 0, "90": 1, "180": 2, "270": 3, "": -1, "nan": -1}


def read_image_lists(files: Sequence[Path], problems: Problems) -> ImageList:
    """All good rows of some lists; what is wrong with the others is noted."""
    parts = [ImageList(np.empty(0, np.uint64), [], [], np.empty(0, np.int8), 0)]
    for path in files:
        own = problems.within(f"Expected a list of images of Open Images in {path}")
        own.attempt(_read_list, path, own, parts)
    return ImageList(
        np.concatenate([part.image for part in parts]),
        [subset for part in parts for subset in part.subset],
        [author for part in parts for author in part.author],
        np.concatenate([part.turns for part in parts]),
        sum(part.unknown_rotation for part in parts),
    )


def _read_list(path: Path, own: Problems, parts: list[ImageList]) -> None:
    """Take in the blocks of one list."""
    start = 2
    for block in read_blocks(path, ("ImageID", "Subset", "AuthorProfileURL", "Author", "Rotation")):
        numbers, wrong = parse_ids(block["ImageID"])
        for row in wrong.tolist():
            own.add(f"row {start + row}: ImageID {block['ImageID'][row].as_py()!r} is not 16 hexadecimal digits")
        codes, texts = _encoded(block["Rotation"])
        for code, text in enumerate(texts):
            if text.lower() not in TURNS:
                own.add(f"row {start + int((codes == code).argmax())}: Rotation {text!r} is no quarter turn")
        turns = np.array([TURNS.get(text.lower(), 0) for text in texts], dtype=np.int8)[codes]
        good = np.ones(len(numbers), dtype=np.bool_)
        good[wrong] = False
        profiles, names, subsets = (block[key].to_pylist() for key in ("AuthorProfileURL", "Author", "Subset"))
        for row in range(len(numbers)):
            if subsets[row] not in SUBSETS:
                own.add(f"row {start + row}: Subset {subsets[row]!r}. {nearest(subsets[row], SUBSETS)}")
                good[row] = False
        places = np.flatnonzero(good).tolist()
        parts.append(
            ImageList(
                numbers[good],
                [SUBSETS[subsets[row]] for row in places],
                [profiles[row] or names[row] for row in places],
                np.maximum(turns[good], 0),
                int((turns[good] < 0).sum()),
            )
        )
        start += len(numbers)


def read_descriptions(path: Path, problems: Problems) -> dict[str, str]:
    """Display name of every class, by its id; the header, which older files lack, is passed over."""
    own = problems.within(f"Expected every line of {path} to hold a class id and its name, each id once")
    found: dict[str, str] = {}
    lines = csv.reader(io.StringIO(own.attempt(read_text, path) or "", newline=""), strict=True)
    try:
        for cells in lines:
            if cells == ["LabelName", "DisplayName"] or not any(cells):
                continue
            faults = [fault for cell in cells if (fault := text_fault(cell))]
            faults += ["has no id that begins with /"] if not cells[0].startswith("/") else []
            faults += ["stands twice"] if cells[0] in found else []
            if len(cells) != 2 or faults:
                own.add(f"line {lines.line_num}: {cells} {'and '.join(faults)}".rstrip())
            found.setdefault(cells[0], cells[-1].strip())
    except csv.Error as error:
        own.add(f"line {lines.line_num}: {error}")
    if not found and not own:
        own.add("no class")
    return found


def read_hierarchy(path: Path, problems: Problems) -> dict[str, list[str]]:
    """Direct parents of every class, by id; parts of a thing are not kinds of it."""
    own = problems.within(f"Expected {path} to nest objects with LabelName and lists of them as Subcategory")
    parents: dict[str, list[str]] = {}
    # A list of what is left to visit: a file may nest deeper than Python calls.
    root = own.attempt(read_json, path)
    todo: list[tuple[Any, tuple[str, ...]]] = [] if own else [(root, ())]
    while todo:
        node, above = todo.pop()
        name = node.get("LabelName") if isinstance(node, dict) else None
        children = node.get("Subcategory", []) if isinstance(node, dict) else None
        if text_fault(name) or not isinstance(name, str) or not isinstance(children, list):
            own.add(short(node))
            continue
        if above and above[-1] not in parents.setdefault(name, []):
            parents[name].append(above[-1])
        if name in above:
            own.add(f"{name} below itself")
        else:
            todo += [(child, (*above, name)) for child in reversed(children)]
    return parents


def ancestors(parents: Mapping[str, Sequence[str]], name: str) -> set[str]:
    """Everything above a class."""
    found: set[str] = set()
    todo = list(parents.get(name, ()))
    while todo:
        above = todo.pop()
        if above not in found:
            found.add(above)
            todo += parents.get(above, ())
    return found
