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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedmlic.errors import InputError, nearest
from fedmlic.formats import csv_rows
from fedmlic.problems import Problems

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
    """

    image_ids: list[str]
    states: NDArray[np.int8]
    repeated: int


def read(path: Path, problems: Problems) -> ImageLabels:
    """Read either form of the table.

    Args:
        path: the table.
        problems: takes what is wrong with single lines and images.

    Raises:
        InputError: no such file, or it is neither form.
    """
    header = csv_rows.columns(path)
    if WIDE_ID not in header and not {"ID", "Label"} <= set(header):
        msg = f"Expected {path} to have the columns ID and Label, or {WIDE_ID} and the subtypes, got {header}."
        raise InputError(msg)
    own = problems.within(f"Expected {path} to say once of every image and subtype whether it is there")
    table = _wide(path, own) if WIDE_ID in header else _long(path, own)
    if not table.image_ids and not own:
        msg = f"Expected {path} to hold labels below its header, got none. Download it again."
        raise InputError(msg)
    return table


def _wide(path: Path, problems: Problems) -> ImageLabels:
    found: dict[str, list[int]] = {}
    repeated = 0
    for line, (name, *cells) in csv_rows.rows(path, [WIDE_ID, *SUBTYPES], problems):
        image_id = Path(name).stem
        states = [CELLS.get(cell, -1) for cell in cells]
        if not image_id or min(states) < 0:
            problems.add(f"line {line}: {name!r} with {cells}, which should be 0 or 1")
        elif found.setdefault(image_id, states) != states:
            problems.add(f"line {line}: {image_id} again with other labels")
        else:
            repeated += 1
    image_ids = sorted(found)
    rows = [[*found[image_id], max(found[image_id])] for image_id in image_ids]
    return ImageLabels(image_ids, np.array(rows, dtype=np.int8).reshape(-1, len(KINDS)), repeated - len(found))


def _long(path: Path, problems: Problems) -> ImageLabels:
    # Four and a half million lines: columns at once, not line by line.
    images, kinds, values = _columns(path, problems)
    order = sorted(range(len(images.names)), key=images.names.__getitem__)
    image_ids = [images.names[place] for place in order]
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    kind = _meaning(kinds, {name: place for place, name in enumerate(KINDS)}, "subtype", problems)
    value = _meaning(values, CELLS, "label", problems)
    good = (kind >= 0) & (value >= 0)
    place = rank[images.codes][good] * len(KINDS) + kind[good]
    counts = np.zeros((2, len(image_ids) * len(KINDS)), dtype=np.int32)
    for state in (0, 1):
        counts[state] = np.bincount(place[value[good] == state], minlength=counts.shape[1])
    states = np.where(counts[1] > 0, 1, np.where(counts[0] > 0, 0, -1)).astype(np.int8)
    contradicted = (counts.min(axis=0) > 0).reshape(-1, len(KINDS))
    states = states.reshape(-1, len(KINDS))
    _compare(image_ids, states, contradicted, problems)
    return ImageLabels(image_ids, states, int((counts.sum(axis=0) - 1).clip(0).sum()))


def _compare(
    image_ids: list[str], states: NDArray[np.int8], contradicted: NDArray[np.bool_], problems: Problems
) -> None:
    """Contradictions, incomplete blocks and wrong unions, image by image."""
    incomplete = (states < 0).any(axis=1)
    wrong_union = ~incomplete & (states[:, :-1].max(axis=1, initial=0) != states[:, -1])
    for row in np.flatnonzero(contradicted.any(axis=1) | incomplete | wrong_union):
        both = [name for name, bad in zip(KINDS, contradicted[row], strict=True) if bad]
        none = [name for name, state in zip(KINDS, states[row], strict=True) if state < 0]
        if both:
            problems.add(f"{image_ids[row]}: both 0 and 1 for {', '.join(both)}")
        if none:
            problems.add(f"{image_ids[row]}: nothing about {', '.join(none)}")
        elif not both:
            problems.add(f"{image_ids[row]}: any is {states[row, -1]}, which is not the union of the subtypes")


class _Coded(NamedTuple):
    """A column with few different values: int32 ``[lines]`` places among the names."""

    codes: NDArray[np.int32]
    names: Sequence[str]


def _meaning(column: _Coded, known: Mapping[str, int], what: str, problems: Problems) -> NDArray[np.int64]:
    """int64 ``[lines]``: what each cell stands for, -1 where it is unknown, which is a problem."""
    lines = np.bincount(column.codes, minlength=len(column.names))
    for place, name in enumerate(column.names):
        if name not in known:
            problems.add(f"{what} {name!r} on {lines[place]} lines. {nearest(name, known)}")
    return np.array([known.get(name, -1) for name in column.names], dtype=np.int64)[column.codes]


def _columns(path: Path, problems: Problems) -> tuple[_Coded, _Coded, _Coded]:
    """Image, subtype and label of each line whose ID holds a subtype."""
    from pyarrow import compute  # half a second that other data sets need not pay

    table = _read_table(path, problems)
    ids = compute.utf8_trim_whitespace(table["ID"])
    whole = compute.match_substring_regex(ids, "^.+_[^_]+$")
    for place in np.flatnonzero(~np.asarray(whole)):
        problems.add(f"entry {place + 1}: {str(ids[place])!r}, which names no image and subtype")
    ids = compute.filter(ids, whole)
    image = compute.replace_substring_regex(ids, "_[^_]+$", "")
    subtype = compute.replace_substring_regex(ids, "^.*_", "")
    label = compute.utf8_trim_whitespace(compute.filter(table["Label"], whole))
    return _coded(image), _coded(subtype), _coded(label)


def _read_table(path: Path, problems: Problems) -> Any:  # noqa: ANN401  (pyarrow has no types)
    import pyarrow as pa
    from pyarrow import csv

    types = {"ID": pa.string(), "Label": pa.string()}
    convert = csv.ConvertOptions(column_types=types, include_columns=list(types), strings_can_be_null=False)
    try:
        return csv.read_csv(path, convert_options=convert).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError):
        # The slow reader knows every line that is wrong, and why.
        cells = [row.cells for row in csv_rows.rows(path, list(types), problems)]
        columns = {name: [row[place] for row in cells] for place, name in enumerate(types)}
        return pa.table({name: pa.array(column, types[name]) for name, column in columns.items()})


def _coded(column: object) -> _Coded:
    encoded = column.combine_chunks().dictionary_encode()  # type: ignore[attr-defined]
    return _Coded(np.asarray(encoded.indices), encoded.dictionary.to_pylist())
