"""Files of BigEarthNet: labels of a patch (1.0), lists of patches (1.0) and the table of all patches (2.0).

A patch is a square of 1.2 km. Release 1.0 has a JSON file per patch with the names of its classes in the CORINE Land
Cover nomenclature, and lists of patches without a header: one name a line, or the names of the Sentinel-2 and the
Sentinel-1 patch with a comma between them. Release 2.0 has one row per patch in ``metadata.parquet``.

Sources: classes, their order and the 19 groups: ``label_indices.json`` of BigEarthNet-S2_19-classes_models at
git.tu-berlin.de/rsim, as repeated by torchgeo (``torchgeo/datasets/bigearthnet.py``) and, independently, by
github.com/kai-tub/bigearthnet_common.
The table: ``tracked-artifacts`` of github.com/rsim-tu-berlin/bigearthnet-pipeline.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedmlic.errors import InputError, nearest
from fedmlic.formats.fields import file_id_fault, short
from fedmlic.formats.reading import read_json, read_lines
from fedmlic.problems import Problems

if TYPE_CHECKING:
    from numpy.typing import NDArray

NATURAL = "Land principally occupied by agriculture, with significant areas of natural vegetation"

CLASSES_19 = (
    "Urban fabric", "Industrial or commercial units", "Arable land", "Permanent crops", "Pastures",
    "Complex cultivation patterns", NATURAL, "Agro-forestry areas", "Broad-leaved forest", "Coniferous forest",
    "Mixed forest", "Natural grassland and sparsely vegetated areas", "Moors, heathland and sclerophyllous vegetation",
    "Transitional woodland, shrub", "Beaches, dunes, sands", "Inland wetlands", "Coastal wetlands", "Inland waters",
    "Marine waters",
)  # fmt: skip
"""Classes of release 2.0, and groups of those of 1.0, in their order."""

GROUP_OF = {
    "Continuous urban fabric": "Urban fabric",
    "Discontinuous urban fabric": "Urban fabric",
    "Industrial or commercial units": "Industrial or commercial units",
    "Road and rail networks and associated land": "",
    "Port areas": "",
    "Airports": "",
    "Mineral extraction sites": "",
    "Dump sites": "",
    "Construction sites": "",
    "Green urban areas": "",
    "Sport and leisure facilities": "",
    "Non-irrigated arable land": "Arable land",
    "Permanently irrigated land": "Arable land",
    "Rice fields": "Arable land",
    "Vineyards": "Permanent crops",
    "Fruit trees and berry plantations": "Permanent crops",
    "Olive groves": "Permanent crops",
    "Pastures": "Pastures",
    "Annual crops associated with permanent crops": "Permanent crops",
    "Complex cultivation patterns": "Complex cultivation patterns",
    NATURAL: NATURAL,
    "Agro-forestry areas": "Agro-forestry areas",
    "Broad-leaved forest": "Broad-leaved forest",
    "Coniferous forest": "Coniferous forest",
    "Mixed forest": "Mixed forest",
    "Natural grassland": "Natural grassland and sparsely vegetated areas",
    "Moors and heathland": "Moors, heathland and sclerophyllous vegetation",
    "Sclerophyllous vegetation": "Moors, heathland and sclerophyllous vegetation",
    "Transitional woodland/shrub": "Transitional woodland, shrub",
    "Beaches, dunes, sands": "Beaches, dunes, sands",
    "Bare rock": "",
    "Sparsely vegetated areas": "Natural grassland and sparsely vegetated areas",
    "Burnt areas": "",
    "Inland marshes": "Inland wetlands",
    "Peatbogs": "Inland wetlands",
    "Salt marshes": "Coastal wetlands",
    "Salines": "Coastal wetlands",
    "Intertidal flats": "",
    "Water courses": "Inland waters",
    "Water bodies": "Inland waters",
    "Coastal lagoons": "Marine waters",
    "Estuaries": "Marine waters",
    "Sea and ocean": "Marine waters",
}
"""The 43 classes of release 1.0 in their order, and the one of the 19 that each belongs to; blank for none."""

CLASSES_43 = tuple(GROUP_OF)

TILE = re.compile(r"_T([0-9]{2}[A-Z]{3})_")
"""A tile of the Military Grid Reference System within the name of a Sentinel-2 product or of a patch of 2.0."""

PATCH_2 = re.compile(r"(S2[AB]_MSIL2A_[0-9T]+_N[0-9]{4}_R[0-9]{3}_T[0-9]{2}[A-Z]{3})_[0-9]+_[0-9]+")
"""Name of a patch of 2.0; the group is the folder that it lies in."""

SPLITS = {"train": "train", "validation": "val", "test": "test"}
"""Names of the splits in the table of 2.0."""

LABELS, SPLIT, COUNTRY, FORMER = "labels", "split", "country", "s2v1_name"
SNOW, CLOUD = "contains_seasonal_snow", "contains_cloud_or_shadow"


class PatchLabels(NamedTuple):
    """What the JSON file of a patch says: its classes, sorted, and the tile that it was cut from (or blank)."""

    names: tuple[str, ...]
    tile: str


def read_patch_labels(path: Path, *, with_tile: bool = True) -> PatchLabels:
    """The labels of a patch of release 1.0.

    Args:
        path: its JSON file.
        with_tile: whether it has to say the tile.

    Raises:
        InputError: it is missing or no JSON, ``labels`` is no list of known classes, or ``tile_source`` names no tile.
    """
    problems = Problems(f"Expected {path} to hold the labels and the tile_source of a patch")
    about = problems.attempt(read_json, path)
    if about is None:
        raise problems.error()
    if not isinstance(about, dict):
        about = {}
    names = about.get("labels")
    if not isinstance(names, list) or not names:
        problems.add(f"labels {short(names)}, no list with a class")
        names = []
    for name in names:
        if name not in CLASSES_43 if isinstance(name, str) else True:
            hint = nearest(name, CLASSES_43) if isinstance(name, str) and len(name) < 200 else ""
            problems.add(f"the label {short(name)}, none of the 43 classes. {hint}".rstrip())
    source = about.get("tile_source")
    found = TILE.search(source) if isinstance(source, str) else None
    if found is None and with_tile:
        problems.add(f"tile_source {short(source)}, which names no tile such as T33UUP")
    problems.finish()
    return PatchLabels(tuple(sorted(set(names))), found.group(1) if found and with_tile else "")


def read_patch_list(path: Path, outer: Problems) -> list[str]:
    """Names of Sentinel-2 patches, in the order of a list without a header; other columns are left out."""
    problems = outer.within(f"Expected {path} to name a patch per line, each once")
    names: dict[str, int] = {}
    lines = problems.attempt(read_lines, path)
    for number, line in lines or ():
        name = line.split(",", 1)[0].strip()
        fault = file_id_fault(name)
        if fault:
            problems.add(f"line {number}: {short(name)} {fault}")
        elif name in names:
            problems.add(f"line {number}: {name}, which line {names[name]} names too")
        else:
            names[name] = number
    if lines is not None and not names:
        problems.add("no names")
    return list(names)


class PatchTable(NamedTuple):
    """Rows of the table of release 2.0.

    Attributes:
        names: of the patches.
        labels: int8 ``[patches, 19]``, 1 where a class is named.
        splits: ``train``, ``val`` or ``test`` per patch.
        countries: per patch.
        former: name of the patch in release 1.0, per patch.
        snow: bool ``[patches]``, whether seasonal snow lies there.
        cloud: bool ``[patches]``, whether clouds or their shadows hide something.
    """

    names: list[str]
    labels: NDArray[np.int8]
    splits: list[str]
    countries: list[str]
    former: list[str]
    snow: NDArray[np.bool_]
    cloud: NDArray[np.bool_]


def read_patch_table(path: Path, outer: Problems) -> PatchTable | None:
    """The rows of ``metadata.parquet``, or None where it is not what it should be."""
    import pandas as pd

    problems = outer.within(f"Expected {path} to be the table of patches of BigEarthNet 2.0")
    texts = {"patch_id": file_id_fault, SPLIT: _split_fault, COUNTRY: file_id_fault, FORMER: file_id_fault}
    columns = [*texts, LABELS, SNOW, CLOUD]
    try:
        table = pd.read_parquet(path, columns=columns)
    except Exception as error:  # noqa: BLE001  (pyarrow raises exceptions of every type for damaged files)
        reason = str(error).split("\n")[0]
        problems.add(f"{short(reason, 200)}. It needs the columns {', '.join(columns)}")
        return None
    before = len(problems)
    for name, fault_of in texts.items():
        _check_texts(name, table[name].tolist(), fault_of, problems)
    for name in (SNOW, CLOUD):
        if table[name].dtype != bool:
            problems.add(f"column {name} of {table[name].dtype}, no booleans")
    labels = _multi_hot(table[LABELS].tolist(), problems)
    if not len(table):
        problems.add("no rows")
    if len(problems) > before:
        return None
    names, splits, countries, former = (table[name].tolist() for name in texts)
    snow, cloud = (table[name].to_numpy(dtype=np.bool_) for name in (SNOW, CLOUD))
    return PatchTable(names, labels, [SPLITS[split] for split in splits], countries, former, snow, cloud)


def _check_texts(column: str, values: Sequence[Any], fault_of: Callable[[str], str], problems: Problems) -> None:
    # A country stands in a hundred thousand rows: each text is checked once.
    faults = {value: fault_of(value) for value in {value for value in values if isinstance(value, str)}}
    for row, value in enumerate(values):
        fault = faults[value] if isinstance(value, str) else "is no text"
        if fault:
            problems.add(f"row {row}: {column} {short(value)} {fault}")


def _split_fault(split: str) -> str:
    return "" if split in SPLITS else f"is none of {', '.join(SPLITS)}"


def _multi_hot(lists: Sequence[Any], problems: Problems) -> NDArray[np.int8]:
    place = {name: column for column, name in enumerate(CLASSES_19)}
    labels = np.zeros((len(lists), len(CLASSES_19)), dtype=np.int8)
    for row, names in enumerate(lists):
        if not isinstance(names, np.ndarray) or not len(names):
            problems.add(f"row {row}: labels {short(names)}, no list with a class")
            continue
        for name in names.tolist():
            column = place.get(name) if isinstance(name, str) else None
            if column is None:
                hint = nearest(name, CLASSES_19) if isinstance(name, str) and len(name) < 200 else ""
                problems.add(f"row {row}: the label {short(name)}, none of the 19 classes. {hint}".rstrip())
            else:
                labels[row, column] = 1
    return labels


def folder_of_patch(name: str) -> str:
    """The folder of release 2.0 that a patch's own folder lies in.

    Raises:
        InputError: the name is none of release 2.0.

    >>> folder_of_patch("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57")
    'S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP'
    """
    found = PATCH_2.fullmatch(name)
    if found is None:
        msg = (
            f"Expected a patch to be named like S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57, got {short(name)}. "
            "Use the official table."
        )
        raise InputError(msg)
    return found.group(1)
