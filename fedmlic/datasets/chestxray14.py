"""NIH ChestX-ray14: 112,120 frontal chest X-rays of 30,805 patients, 14 findings mined from reports.

Source: Wang et al., "ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks on
Weakly-Supervised Classification and Localization of Common Thorax Diseases" (CVPR 2017) and
its extension to 14 findings; https://nihcc.app.box.com/v/ChestXray-NIHCC.

The table is ``Data_Entry_2017_v2020.csv`` or the older ``Data_Entry_2017.csv``. Their headers
hold unquoted commas inside brackets and some copies end lines with a comma; columns are found
by name. Findings are separated by ``|``; "No Finding" stands alone and is no label: all
findings are absent then. Images lie in ``images/`` or, as the twelve archives unpack in some
mirrors, in ``images_001/images/`` to ``images_012/images/``. Boxes (``BBox_List_2017.csv``,
where Infiltration is called Infiltrate) become objects where that file exists; they are given
in pixels of the 1024 x 1024 release, whatever size a mirror has.

Patients are owners and are never divided between splits, unless ``split="images"`` asks for
the leaking random split of some released programs.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from fedmlic.dataset import Dataset, Objects, Table
from fedmlic.errors import InputError, listing, nearest
from fedmlic.files import file_sha256, find_files, stamps_of, stamps_sha256
from fedmlic.formats import csv_rows
from fedmlic.formats.reading import read_lines
from fedmlic.images import Resize, decode
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.problems import Problems
from fedmlic.sources.groups import crossing, deal, first_of_each, number_groups
from fedmlic.sources.headers import read_headers
from fedmlic.sources.objects import boxed_objects
from fedmlic.sources.options import Channels, HeldOut, ImageSize, Root, Seed
from fedmlic.sources.place import source_root

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

VERSION = "1"
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
LISTED = re.compile(r"[^\s/\\]+\.png", re.IGNORECASE)
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
BOXES = "BBox_List_2017.csv"
COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position")
BOX_COLUMNS = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
BOX_COUNTS = ("boxes", "boxes_elsewhere", "boxes_of_absent_findings")
NO_FINDING = "No Finding"
BOX_NAMES = {"Infiltrate": "Infiltration"}
"""Findings that the list of boxes spells in its own way."""

COLUMN_VALUES = {
    "Patient ID": ("a whole number from 1, of up to 8 digits", re.compile("0*[1-9][0-9]{0,7}")),
    "Patient Age": (
        "a number of years, one with Y, M or D, or nothing",
        re.compile("([0-9]{1,3}[YMD]?)?", re.IGNORECASE),
    ),
    "Patient Gender": ("F or M", re.compile("F|M")),
    "View Position": ("PA or AP", re.compile("PA|AP", re.IGNORECASE)),
}
"""What the columns about the patient and the view may say."""

OLDEST = 120
"""Years; the older table is known to hold some impossible ages, which are counted."""

SIDE = 1024
"""Pixels of the release in which boxes are measured."""

POSITIVES = {
    "Atelectasis": 11559,
    "Cardiomegaly": 2776,
    "Consolidation": 4667,
    "Edema": 2303,
    "Effusion": 13317,
    "Emphysema": 2516,
    "Fibrosis": 1686,
    "Hernia": 227,
    "Infiltration": 19894,
    "Mass": 5782,
    "Nodule": 6331,
    "Pleural_Thickening": 3385,
    "Pneumonia": 1431,
    "Pneumothorax": 5302,
}
"""The findings, alphabetically, and their images in the v2020 table."""


class _Entry(NamedTuple):
    """One line of the table."""

    name: str
    findings: tuple[str, ...]
    patient: str
    age: str
    sex: str
    view: str


class _Table(NamedTuple):
    """What the table says.

    Attributes:
        entries: of all lines that can be used, sorted by image name.
        names: every image that it names, also on lines that cannot be used.
    """

    entries: list[_Entry]
    names: set[str]


def _read_table(path: Path, problems: Problems) -> _Table:
    own = problems.within(f"Expected {path} to describe one image per line", complete=True)
    found: dict[str, _Entry] = {}
    names: set[str] = set()
    for line, (name, labels, *about) in csv_rows.rows(path, COLUMNS, own, flat=True):
        findings = tuple(finding.strip() for finding in labels.split("|"))
        wrong = _wrong(findings, dict(zip(COLUMNS[2:], about, strict=True)))
        if name in names:
            wrong.append(f"{name!r} again")
        names.add(name)
        if wrong or not name:
            own.add(f"{path} line {line}: {'; '.join(wrong) or 'no image'}")
        else:
            patient, age, sex, view = about
            found[name] = _Entry(name, findings, f"{int(patient):08d}", age, sex, view.upper())
    if own:
        # Lines with too many cells were not given; the images that they name are not unknown.
        place = csv_rows.columns(path, flat=True).index(COLUMNS[0])
        names |= {cells[place] for _, cells in csv_rows.lines(path) if len(cells) > place}
    if not names and not own:
        own.add(f"Expected {path} to hold images below its header, got none. Download it again.")
    return _Table([found[name] for name in sorted(found)], names)


def _wrong(findings: tuple[str, ...], about: dict[str, str]) -> list[str]:
    wrong = [
        f"finding {f!r}. {nearest(f, POSITIVES)}" for f in findings if f not in POSITIVES and f != NO_FINDING and f
    ]
    if not all(findings):
        wrong.append(
            f"no findings, where a healthy chest says {NO_FINDING!r}" if len(findings) == 1 else "a blank finding"
        )
    wrong += [f"finding {f!r} twice" for f in sorted(set(findings)) if f and findings.count(f) > 1]
    if NO_FINDING in findings and len(set(findings)) > 1:
        wrong.append(f"{NO_FINDING!r} beside findings")
    for column, (allowed, pattern) in COLUMN_VALUES.items():
        if not pattern.fullmatch(about[column]):
            wrong.append(f"{about[column]!r} in column {column!r}, which may say {allowed}")
    return wrong


def _chosen(
    entries: list[_Entry], files: dict[str, Path], views: str, rules: tuple[bool, str], problems: Problems
) -> tuple[list[_Entry], dict[str, int]]:
    """The entries to keep, and how many each rule left out."""
    one_each, missing = rules
    kept = [entry for entry in entries if views in {"all", entry.view}]
    left_out = {"other_view": len(entries) - len(kept)}
    absent = [entry.name for entry in kept if entry.name not in files]
    if missing == "error":
        for name in absent:
            problems.add(f"no image {name!r}, which the table names")
    else:
        kept = [entry for entry in kept if entry.name in files]
        left_out["no_file"] = len(absent)
    if one_each:
        first = first_of_each([entry.patient for entry in kept])
        left_out["later_image_of_patient"] = first.count(False)
        kept = [entry for entry, keep in zip(kept, first, strict=True) if keep]
    return kept, left_out


def _listed(place: Path, problems: Problems) -> dict[str, str] | None:
    """The split of each image name in the official lists; None where a list cannot be read."""
    split_of: dict[str, str] = {}
    before = len(problems)
    for split, name in LISTS.items():
        if not (place / name).is_file():
            problems.add(f"Expected the official list {place / name}, got none. Download it, or set split='patients'.")
            continue
        own = problems.within(f"Expected {place / name} to name one image file per line, each once")
        for line, text in problems.attempt(read_lines, place / name) or ():
            if not LISTED.fullmatch(text):
                own.add(f"line {line}: {text!r}")
            elif text in split_of:
                own.add(f"line {line}: {text!r}, which is listed in {LISTS[split_of[text]]} already")
            else:
                split_of[text] = split
    # After other faults of the lists, images that they lack are no news.
    return split_of if len(problems) == before else None


def _official(split_of: dict[str, str], table: _Table, kept: list[_Entry], problems: Problems, *, whole: bool) -> None:
    """Compare the two lists with the table."""
    for entry in kept:
        if entry.name not in split_of:
            problems.add(f"{entry.name!r} is in no official list")
    if whole:
        for name in sorted(split_of.keys() - table.names):
            problems.add(f"{name!r} of {LISTS[split_of[name]]} is not in the table")
    known = [entry for entry in table.entries if entry.name in split_of]
    for patient in crossing([entry.patient for entry in known], [split_of[entry.name] for entry in known]):
        problems.add(f"patient {patient} has images in both official lists")


def _owner(entry: _Entry, by: str) -> str:
    if by == "age":
        # v2020 holds plain years; the older table writes 058Y, 013M or 007D and some impossible years.
        match = re.fullmatch(r"(\d{1,3})([YMD]?)", entry.age.upper())
        years = int(match[1]) if match and match[2] in {"", "Y"} else 0
        return f"{years // 20 * 20:03d}-{years // 20 * 20 + 19:03d}" if match and years < OLDEST else ""
    return {"patient": entry.patient, "view": entry.view, "sex": entry.sex}[by]


class _Box(NamedTuple):
    row: int
    label: int
    box: tuple[float, ...]


def _read_box(finding: str, numbers: Sequence[str]) -> tuple[tuple[float, ...], list[str]]:
    """The box of a line, and what is wrong with the line."""
    wrong = [] if finding in POSITIVES else [f"finding {finding!r}. {nearest(finding, POSITIVES)}"]
    try:
        box = tuple(float(value) for value in numbers)
    except ValueError:
        return (), [*wrong, f"box {numbers}, which is not four numbers"]
    x, y, width, height = box
    if not (0 <= x < SIDE and 0 <= y < SIDE and 0 < width < math.inf and 0 < height < math.inf):
        wrong.append(f"box {numbers}, whose corner is not in the {SIDE} pixels of the image or which has no area")
    return box, wrong


def _boxes(
    path: Path, table: _Table, kept: list[_Entry], names: Sequence[str], problems: Problems, *, whole: bool
) -> tuple[list[_Box], dict[str, int]]:
    """Boxes on kept images whose finding is a label and present there; the others are counted."""
    row_of = {entry.name: row for row, entry in enumerate(kept)}
    own = problems.within(f"Expected {path} to hold one box per line", complete=True)
    boxes, counts = [], dict.fromkeys(BOX_COUNTS, 0)
    for line, (name, finding, *numbers) in csv_rows.rows(path, BOX_COLUMNS, own, flat=True):
        finding = BOX_NAMES.get(finding, finding)  # noqa: PLW2901  (spelled as the table does)
        box, wrong = _read_box(finding, numbers)
        if whole and name not in table.names:
            wrong.append(f"no image {name!r}")
        if wrong:
            own.add(f"{path} line {line}: {'; '.join(wrong)}")
        elif name not in row_of or finding not in names:
            counts["boxes_elsewhere"] += 1
        elif finding not in kept[row_of[name]].findings:
            counts["boxes_of_absent_findings"] += 1
        else:
            counts["boxes"] += 1
            boxes.append(_Box(row_of[name], list(names).index(finding), box))
    return sorted(boxes), counts


def _objects(boxes: list[_Box], size: int, resize: Resize) -> Objects:
    sides = np.full((len(boxes), 2), float(SIDE))
    source = np.array([box.box for box in boxes], dtype=np.float32).reshape(len(boxes), 4)
    row, label = (np.array([getattr(box, name) for box in boxes], dtype=np.int64) for name in ("row", "label"))
    return boxed_objects(row, label, source, sides, size, resize)


def _names(label_names: list[str] | None, *, no_finding: bool) -> tuple[str, ...]:
    names = [*(POSITIVES if label_names is None else label_names), *([NO_FINDING] if no_finding else [])]
    wrong = [f"{name!r}: {nearest(name, POSITIVES)}" for name in names if name not in {*POSITIVES, NO_FINDING}]
    if wrong:
        raise listing("Expected label_names of chestxray14 to be among its findings", wrong)
    if not names or len(set(names)) != len(names):
        msg = f"Expected label_names of chestxray14 to be different findings, at least one, got {names}."
        raise InputError(msg)
    return tuple(names)


def _labels(kept: list[_Entry], names: tuple[str, ...]) -> NDArray[np.int8]:
    labels = np.full((len(kept), len(names)), ABSENT, dtype=np.int8)
    column = {name: place for place, name in enumerate(names)}
    for row, entry in enumerate(kept):
        labels[row, [column[finding] for finding in entry.findings if finding in column]] = PRESENT
    return labels


def _table_path(place: Path, csv: str | None) -> Path:
    if csv is not None:
        return place / csv
    return next((place / name for name in TABLES if (place / name).is_file()), place / TABLES[0])


def chestxray14(
    *,
    root: Root,
    csv: Annotated[str, Field(min_length=1)] | None = None,
    label_names: list[str] | None = None,
    no_finding: bool = False,
    views: Literal["all", "PA", "AP"] = "all",
    unique_patients: bool = False,
    split: Literal["official", "patients", "images"] = "official",
    owners: Literal["patient", "view", "sex", "age"] = "patient",
    missing: Literal["error", "leave_out"] = "error",
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
    val_fraction: HeldOut = 0.1,
    test_fraction: Annotated[float, Field(ge=0, le=0.4)] = 0.2,
    seed: Seed = 0,
) -> Dataset:
    """NIH ChestX-ray14 as downloaded: images, table of findings, official lists, boxes.

    Args:
        root: folder of the download; ``~`` is your home.
        csv: name of the table below ``root``; by default the v2020 one, else the older one.
        label_names: the findings to keep and their order; all 14, alphabetically, by default.
        no_finding: add the column "No Finding", present where the table says so.
        views: keep one view position only.
        unique_patients: keep the first image of each patient only.
        split: ``official`` lists; random ``patients``; or random ``images``, which puts
            patients on both sides and exists to replay programs that do so.
        owners: natural clients: patients, view positions, sexes, or ages in steps of 20 years.
        missing: what to do with images of the table that the disk lacks, and with images of
            the lists and boxes that the table lacks: an error, or leave them out.
        image_size: height and width of stored images, pixels.
        resize: ``squash`` changes the aspect, ``crop`` cuts the longer side around the
            centre, ``pad`` adds black bars.
        channels: 3 (the grey value three times) or 1.
        val_fraction: share for validation: of the official training list, or of all images.
        test_fraction: share for testing where the split is random.
        seed: of the random parts of the split.

    Raises:
        InputError: the table, the lists, the boxes or the images are wrong; all problems at once.
    """
    place = source_root("chestxray14", root, TABLES[0])
    path = _table_path(place, csv)
    names = _names(label_names, no_finding=no_finding)
    problems = Problems(f"Expected {place} to be a whole and correct ChestX-ray14", complete=True)
    readable = problems.attempt(_read_table, path, problems)
    read = readable or _Table([], set())
    folders = [place / "images", *sorted(place.glob("images_*/images")), *sorted(place.glob("images_*"))]
    files, double = find_files(folders, (".png",))
    kept, left_out = _chosen(read.entries, files, views, (unique_patients, missing), problems)
    for line in double:
        problems.add(line)
    whole = missing == "error" and readable is not None
    official = split == "official"
    split_of = (_listed(place, problems) if official else None) or {}
    if split_of:
        _official(split_of, read, kept, problems, whole=whole)
    none: tuple[list[_Box], dict[str, int]] = ([], dict.fromkeys(BOX_COUNTS, 0))
    there = (place / BOXES).is_file()
    boxes, counted = (
        problems.attempt(_boxes, place / BOXES, read, kept, names, problems, whole=whole) if there else None
    ) or none
    problems.finish()
    splits = [split_of.get(entry.name, "train") for entry in kept]
    groups, _ = number_groups([entry.name if split == "images" else entry.patient for entry in kept])
    fractions = {"val": val_fraction} if official else {"test": test_fraction, "val": val_fraction}
    splits = deal(splits, groups, fractions, seed, "chestxray14")
    owner, owner_names = number_groups([_owner(entry, owners) for entry in kept])
    paths = [files[entry.name] for entry in kept]

    def table() -> Table:
        objects = _objects(boxes, image_size, resize) if boxes else None
        ids = [entry.name for entry in kept]
        # Names begin with the patient's number; the table's own column decides.
        misnamed = sum(not entry.name.startswith(f"{entry.patient}_") for entry in kept)
        report = {
            **read_headers(paths).report,
            "left_out": left_out,
            **counted,
            "named_after_other_patients": misnamed,
            "warnings": _warnings(kept, misnamed),
        }
        return Table(ids, splits, _labels(kept, names), owner, objects, [str(p) for p in paths], owner_names, report)

    sources = [path, place / BOXES, *(place / name for name in LISTS.values() if official)]
    return Dataset(
        name="chestxray14",
        version=VERSION,
        identity={
            "options": [no_finding, views, unique_patients, split, owners, resize],
            "size": [image_size, channels],
            "dealt": {**fractions, "seed": seed},
            "label_names": list(names),
            "sources": {file.name: file_sha256(file) for file in sources if file.is_file()},
            "files": stamps_sha256(stamps_of((entry.name, files[entry.name]) for entry in kept)),
        },
        label_names=names,
        image_shape=(image_size, image_size, channels),
        table=table,
        image=lambda row: decode(paths[row], image_size, channels, resize, upright=False),
        licence="no restriction on use; attribution to the NIH Clinical Center is asked for",
        expected=_expected(names, whole=official and views == "all" and not unique_patients, val_fraction=val_fraction),
    )


def _warnings(kept: list[_Entry], misnamed: int) -> list[str]:
    """What is strange but no reason to refuse the table."""
    years = (entry.age.upper().removesuffix("Y") for entry in kept)
    old = sum(age.isdecimal() and int(age) >= OLDEST for age in years)
    lines = [f"{old:,} images of patients who are {OLDEST} years old or more"] if old else []
    if misnamed:
        lines.append(f"{misnamed:,} files begin with another patient's number than the table says; the table counts")
    return lines


def _expected(names: tuple[str, ...], *, whole: bool, val_fraction: float) -> dict[str, int]:
    """Counts of the v2020 release, where no option changes them."""
    if not whole:
        return {}
    positives = {f"positives/{name}": POSITIVES[name] for name in names if name in POSITIVES}
    return {"test": 25596, **({} if val_fraction else {"train": 86524}), **positives}
