"""The label table of the RSNA haemorrhage challenge: one line per image and subtype.

``ID,Label`` with ``ID_000012eaf_epidural,0``: six lines per image. Lines may come in any
order, and some images' lines come twice (four images in the published file). Lines that
agree count once; lines that contradict each other, blocks that are not complete and an
``any`` that is not the union of the subtypes are problems. The table with one line per image
and one column per subtype (``Image Index,epidural,...``), which programs derive from it, is
read too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic.errors import InputError, listing, nearest
from fedmlic.formats import csv_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
ANY = "any"
KINDS = (*SUBTYPES, ANY)
WIDE_ID = "Image Index"
CELLS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}


class ImageLabels(NamedTuple):
    """What the table says.

    Attributes:
        image_ids: ``ID_...`` of every image, sorted.
        states: int8 ``[images, 6]``: the subtypes and ``any``; -1 where the image has problems.
        repeated: lines that only repeat others.
        problems: what is wrong, one text each.
    """

    image_ids: list[str]
    states: NDArray[np.int8]
    repeated: int
    problems: list[str]


def read(path: Path) -> ImageLabels:
    """Read either form of the table.

    Raises:
        InputError: no such file, or it is neither form.
    """
    header = csv_rows.columns(path)
    if WIDE_ID not in header and not {"ID", "Label"} <= set(header):
        msg = f"Expected {path} to have the columns ID and Label, or {WIDE_ID} and the subtypes, got {header}."
        raise InputError(msg)
    told = _wide(path) if WIDE_ID in header else _long(path)
    if not told.image_ids and not told.problems:
        msg = f"Expected {path} to hold labels below its header, got none. Download it again."
        raise InputError(msg)
    return told


def _wide(path: Path) -> ImageLabels:
    found: dict[str, list[int]] = {}
    problems, repeated = [], 0
    for line, (name, *cells) in csv_rows.rows(path, [WIDE_ID, *SUBTYPES]):
        image_id = Path(name).stem
        states = [CELLS.get(cell, -1) for cell in cells]
        if not image_id or min(states) < 0:
            problems.append(f"{path.name} line {line}: {name!r} with {cells}, which should be 0 or 1")
        elif found.setdefault(image_id, states) != states:
            problems.append(f"{path.name} line {line}: {image_id} again with other labels")
        else:
            repeated += 1
    image_ids = sorted(found)
    rows = [[*found[image_id], max(found[image_id])] for image_id in image_ids]
    return ImageLabels(
        image_ids, np.array(rows, dtype=np.int8).reshape(-1, len(KINDS)), repeated - len(found), problems
    )


def _long(path: Path) -> ImageLabels:
    # Four and a half million lines: columns at once, not line by line.
    images, kinds, values, problems = _columns(path)
    order = sorted(range(len(images.names)), key=images.names.__getitem__)
    image_ids = [images.names[place] for place in order]
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    kind = _meaning(kinds, {name: place for place, name in enumerate(KINDS)}, "subtype", problems)
    value = _meaning(values, CELLS, "label", problems)
    good = (kind >= 0) & (value >= 0)
    place = rank[images.codes][good] * len(KINDS) + kind[good]
    told = np.zeros((2, len(image_ids) * len(KINDS)), dtype=np.int32)
    for state in (0, 1):
        told[state] = np.bincount(place[value[good] == state], minlength=told.shape[1])
    states = np.where(told[1] > 0, 1, np.where(told[0] > 0, 0, -1)).astype(np.int8)
    contradicted = (told.min(axis=0) > 0).reshape(-1, len(KINDS))
    states = states.reshape(-1, len(KINDS))
    problems += _faults(image_ids, states, contradicted)
    return ImageLabels(image_ids, states, int((told.sum(axis=0) - 1).clip(0).sum()), problems)


def _faults(image_ids: list[str], states: NDArray[np.int8], contradicted: NDArray[np.bool_]) -> list[str]:
    """Contradictions, incomplete blocks and wrong unions, image by image."""
    incomplete = (states < 0).any(axis=1)
    wrong_union = ~incomplete & (states[:, :-1].max(axis=1, initial=0) != states[:, -1])
    problems = []
    for row in np.flatnonzero(contradicted.any(axis=1) | incomplete | wrong_union):
        both = [name for name, bad in zip(KINDS, contradicted[row], strict=True) if bad]
        none = [name for name, state in zip(KINDS, states[row], strict=True) if state < 0]
        if both:
            problems.append(f"{image_ids[row]}: both 0 and 1 for {', '.join(both)}")
        if none:
            problems.append(f"{image_ids[row]}: nothing about {', '.join(none)}")
        elif not both:
            problems.append(f"{image_ids[row]}: any is {states[row, -1]}, which is not the union of the subtypes")
    return problems


class _Coded(NamedTuple):
    """A column with few different values: int32 ``[lines]`` places among the names."""

    codes: NDArray[np.int32]
    names: Sequence[str]


def _meaning(column: _Coded, known: Mapping[str, int], what: str, problems: list[str]) -> NDArray[np.int64]:
    """int64 ``[lines]``: what each cell stands for, -1 where it is unknown, which is a problem."""
    lines = np.bincount(column.codes, minlength=len(column.names))
    for place, name in enumerate(column.names):
        if name not in known:
            problems.append(f"{what} {name!r} on {lines[place]} lines. {nearest(name, known)}")
    return np.array([known.get(name, -1) for name in column.names], dtype=np.int64)[column.codes]


def _columns(path: Path) -> tuple[_Coded, _Coded, _Coded, list[str]]:
    """Image, subtype and label of each line, and lines whose ID holds no subtype."""
    import pyarrow as pa  # half a second that other data sets need not pay
    from pyarrow import compute, csv

    types = {"ID": pa.string(), "Label": pa.string()}
    convert = csv.ConvertOptions(column_types=types, include_columns=list(types), strings_can_be_null=False)
    try:
        table = csv.read_csv(path, convert_options=convert).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        expected = f"Expected {path} to be a table of ID and Label"
        raise listing(expected, [str(error)]) from error
    ids = compute.utf8_trim_whitespace(table["ID"])
    whole = compute.match_substring_regex(ids, "^.+_[^_]+$")
    broken = np.flatnonzero(~np.asarray(whole))
    problems = [
        f"{path.name} entry {line + 1}: {str(ids[line])!r}, which names no image and subtype" for line in broken
    ]
    ids = compute.filter(ids, whole)
    image = compute.replace_substring_regex(ids, "_[^_]+$", "")
    subtype = compute.replace_substring_regex(ids, "^.*_", "")
    label = compute.utf8_trim_whitespace(compute.filter(table["Label"], whole))
    return _coded(image), _coded(subtype), _coded(label), problems


def _coded(column: object) -> _Coded:
    encoded = column.combine_chunks().dictionary_encode()  # type: ignore[attr-defined]
    return _Coded(np.asarray(encoded.indices), encoded.dictionary.to_pylist())
