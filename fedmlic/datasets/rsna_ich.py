"""RSNA intracranial haemorrhage 2019: CT slices with five subtypes of bleeding, DICOM or exported.

Source: Flanders et al., "Construction of a Machine Learning Dataset through Collaboration:
The RSNA 2019 Brain CT Hemorrhage Challenge" (Radiology: Artificial Intelligence 2020);
https://www.kaggle.com/c/rsna-intracranial-hemorrhage-detection.

The label table has six lines per image (``fedmlic.formats.rsna_labels``). Images are DICOM
slices, of which up to three windows become the channels, or the PNG or JPEG files that people
export from them. Many slices show one patient, and the label table does not say whose: patients
come from the DICOM headers, or from a table of metadata. Slices are dealt to training,
validation and test by whole patients, since the official test labels are withheld.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from fedmlic.dataset import NO_OWNER, Dataset, Table
from fedmlic.errors import InputError
from fedmlic.files import file_sha256, stamps_of, stamps_sha256
from fedmlic.formats import csv_rows, rsna_labels
from fedmlic.formats.dicom import Origin, Window, hounsfield, origins, windowed
from fedmlic.images import Resize, decode, from_pixels
from fedmlic.problems import Problems
from fedmlic.sources.groups import deal, number_groups
from fedmlic.sources.headers import read_headers
from fedmlic.sources.options import Channels, HeldOut, ImageSize, Root, Seed
from fedmlic.sources.place import source_root

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "1"
TABLES = ("stage_2_train.csv", "stage_1_train.csv")
FOLDERS = ("stage_2_train", "stage_2_train_images", "stage_1_train", "stage_1_train_images")
SUFFIXES = (".dcm", ".png", ".jpg", ".jpeg")
IMAGE_COLUMNS = ("SOPInstanceUID", "ID", "Image", "Image Index", "filename")
"""Columns that name the image in a table of metadata, the first that it has."""

WINDOWS = {
    "brain": Window(40, 80),
    "subdural": Window(80, 200),
    "blood": Window(75, 215),
    "bone": Window(600, 2800),
}
DEFAULT_WINDOWS = ("brain", "subdural", "bone")
CORRUPT = "ID_6431af929"
"""The one file of the official training images that cannot be decoded."""

POSITIVES = {
    "stage_1_train.csv": (2761, 32564, 23766, 32122, 42496, 97103),
    "stage_2_train.csv": (3145, 36118, 26205, 35675, 47166, 107933),
}

NO_STATES = np.empty((0, len(rsna_labels.KINDS)), dtype=np.int8)

WindowName = Literal["brain", "subdural", "blood", "bone", "header"]


@dataclass(frozen=True)
class _Slices:
    """The images to store: ids, in order, and where their files lie."""

    folder: Path
    image_ids: list[str]
    suffix_of: dict[str, str]

    def path(self, image_id: str) -> Path:
        return self.folder / f"{image_id}{self.suffix_of[image_id]}"

    @cached_property
    def dicom(self) -> bool:
        return ".dcm" in self.suffix_of.values()


def _folder(place: Path, images: str | None) -> Path:
    """The named folder of images, else an official one, else the only one whose files begin with ``ID_``."""
    children = sorted(child for child in place.iterdir() if child.is_dir())
    names = FOLDERS if images is None else (images,)
    found = next((place / name for name in names if (place / name).is_dir()), None)
    if found is None and images is None:
        likely = [child for child in children if next(child.glob("ID_*"), None) is not None]
        found = likely[0] if len(likely) == 1 else None
    if found is None:
        have = ", ".join(child.name for child in children[:10]) or "no folder"
        msg = f"Expected {place} to hold a folder {' or '.join(names)}, got {have}. Name it as images=..."
        raise InputError(msg)
    return found


def _files(folder: Path, problems: Problems) -> dict[str, str]:
    """The suffix of the file of each image id in the folder."""
    found: dict[str, str] = {}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        stem, suffix = os.path.splitext(name)  # noqa: PTH122  (three quarters of a million names)
        if suffix.lower() in SUFFIXES and found.setdefault(stem, suffix) != suffix:
            problems.add(f"{folder} holds {stem} as {found[stem]} and as {suffix}")
    kinds = {suffix.lower() for suffix in found.values()}
    if ".dcm" in kinds and len(kinds) > 1:
        problems.add(f"{folder} holds DICOM files and others: {', '.join(sorted(kinds))}")
    return found


def _windows(chosen: Sequence[WindowName | tuple[float, float]] | None, channels: int) -> list[Window | None]:
    """One window per channel; ``None`` is the one in the header."""
    names = DEFAULT_WINDOWS[:channels] if chosen is None else chosen
    windows = [WINDOWS.get(w) if isinstance(w, str) else Window(*w) for w in names]
    if len(windows) != channels or any(not _usable(window) for window in windows if window):
        msg = f"Expected windows of rsna_ich to be {channels}, one per channel, each wider than 0, got {list(names)}."
        raise InputError(msg)
    return windows


def _usable(window: Window) -> bool:
    return math.isfinite(window.centre) and 0 < window.width < math.inf


def _windowed_image(
    path: Path, windows: list[Window | None], size: int, resize: Resize, *, fix_intercept: bool
) -> NDArray[np.uint8]:
    """uint8 ``[size, size, windows]`` of a DICOM slice."""
    values, proposed = hounsfield(path, fix_intercept=fix_intercept)
    planes = []
    for window in windows:
        used = window or proposed
        if used is None or not _usable(used):
            msg = "Expected the header to propose a window, got none. Use a named one."
            raise InputError(msg)
        planes.append(windowed(values, used))
    pixels = planes[0] if len(planes) == 1 else np.stack(planes, axis=-1)
    return from_pixels(pixels, size, len(planes), resize)


def _metadata(path: Path, problems: Problems) -> dict[str, Origin]:
    """Patient and study of each image, as a table says."""
    header = csv_rows.columns(path)
    image = next((name for name in IMAGE_COLUMNS if name in header), IMAGE_COLUMNS[0])
    study = "StudyInstanceUID" if "StudyInstanceUID" in header else "PatientID"
    found: dict[str, Origin] = {}
    own = problems.within(f"Expected {path} to name one patient and study per image")
    for line, (name, patient, its_study) in csv_rows.rows(path, [image, "PatientID", study], own):
        image_id, whose = os.path.splitext(name)[0], Origin(patient, its_study)  # noqa: PTH122
        if found.setdefault(image_id, whose) != whose:
            own.add(f"line {line}: {image_id} belongs to {found[image_id].patient} and to {patient}")
    return found


def _origins(
    slices: _Slices, table: dict[str, Origin] | None, where: str, owners: str
) -> tuple[list[Origin], list[str]]:
    """Patient and study of every slice, from a table or the headers, and what pydicom warns of.

    Raises:
        InputError: some are not known, all at once.
    """
    problems = Problems(f"Expected {where} to name the {owners if owners == 'study' else 'patient'} of every image")
    read: Sequence[Origin | InputError]
    warned: list[str] = []
    if table is not None:
        read = [table.get(image_id, Origin("", "")) for image_id in slices.image_ids]
    else:
        read, warned = origins([slices.path(image_id) for image_id in slices.image_ids])
    found = []
    for image_id, whose in zip(slices.image_ids, read, strict=True):
        if isinstance(whose, InputError):
            problems.note(f"{slices.path(image_id)}: {whose}")
            continue
        if not whose.patient:
            problems.add(f"{image_id}: no patient")
        elif owners == "study" and not whose.study:
            problems.add(f"{image_id}: no study")
        found.append(whose)
    problems.finish()
    return found, warned


def _chosen(
    table: rsna_labels.ImageLabels, files: dict[str, str], exclude: list[str], missing: str, problems: Problems
) -> tuple[list[int], dict[str, int]]:
    """Rows of the label table to keep, and how many each rule left out."""
    unwanted = set(exclude)
    wanted = [row for row, image_id in enumerate(table.image_ids) if image_id not in unwanted]
    rows = [row for row in wanted if table.image_ids[row] in files]
    if missing == "error" and len(rows) < len(wanted):
        for row in wanted:
            if table.image_ids[row] not in files:
                problems.add(f"no image {table.image_ids[row]!r}, which the table of labels names")
    left_out = {"excluded": len(table.image_ids) - len(wanted), "no_file": len(wanted) - len(rows)}
    return rows, left_out | {"files_without_labels": len(files.keys() - set(table.image_ids))}


def _check_patients(folder: Path, split_by: str, *, known: bool) -> None:
    if split_by == "patient" and not known:
        msg = (
            f"Expected the patients of the images in {folder} to be known, got exported files and no metadata. "
            "Name a table with PatientID as metadata=..., or set split_by='slice', which divides patients."
        )
        raise InputError(msg)


def rsna_ich(
    *,
    root: Root,
    csv: Annotated[str, Field(min_length=1)] | None = None,
    images: Annotated[str, Field(min_length=1)] | None = None,
    metadata: Annotated[str, Field(min_length=1)] | None = None,
    any_label: bool = False,
    windows: list[WindowName | tuple[float, float]] | None = None,
    fix_intercept: bool = True,
    exclude: list[str] | None = None,
    split_by: Literal["patient", "slice"] = "patient",
    owners: Literal["patient", "study"] = "patient",
    missing: Literal["error", "leave_out"] = "error",
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
    val_fraction: HeldOut = 0.1,
    test_fraction: Annotated[float, Field(ge=0, le=0.4)] = 0.2,
    seed: Seed = 0,
) -> Dataset:
    """RSNA ICH as downloaded, or with its slices exported to PNG or JPEG.

    Args:
        root: folder of the download; ``~`` is your home.
        csv: name of the label table below ``root``; by default that of stage 2, else of stage 1.
        images: name of the folder of images below ``root``; by default the official one, else
            the only one whose files begin with ``ID_``.
        metadata: name of a table below ``root`` that says ``PatientID`` (and
            ``StudyInstanceUID``) of each image; needed to split exported images by patient,
            and faster than reading every DICOM header.
        any_label: add the column "any", the union of the subtypes.
        windows: one per channel: ``brain``, ``subdural``, ``blood``, ``bone``, the one that
            the ``header`` proposes, or a pair of centre and width in Hounsfield units. By
            default brain, subdural and bone, or brain alone. Exported images have theirs.
        fix_intercept: undo the wrong intercept of some DICOM files.
        exclude: images to leave out; by default the one known to be corrupt.
        split_by: ``patient``, or ``slice``, which puts patients on both sides and exists to
            replay programs that do so.
        owners: natural clients: patients or studies; nobody where neither is known.
        missing: what to do with images of the table that the disk lacks: an error, or leave
            them out and count them.
        image_size: height and width of stored images, pixels.
        resize: ``squash`` changes the aspect, ``crop`` cuts the longer side around the
            centre, ``pad`` adds black bars.
        channels: 3 or 1.
        val_fraction: share of the images for validation.
        test_fraction: share of the images for testing.
        seed: of the random split.

    Raises:
        InputError: the table, the images or the patients are wrong; all problems at once.
    """
    place = source_root("rsna_ich", root, TABLES[0])
    path = place / (csv or next((name for name in TABLES if (place / name).is_file()), TABLES[0]))
    planes = _windows(windows, channels)
    problems = Problems(f"Expected {place} to be a whole and correct RSNA ICH", complete=True)
    labelled = problems.attempt(rsna_labels.read, path, problems) or rsna_labels.ImageLabels([], NO_STATES, 0)
    patients = problems.attempt(_metadata, place / metadata, problems) if metadata else None
    folder = problems.attempt(_folder, place, images)
    files = _files(folder, problems) if folder else {}
    unwanted = [CORRUPT] if exclude is None else exclude
    rows, left_out = _chosen(labelled, files, unwanted, missing, problems) if folder else ([], {})
    ids = [labelled.image_ids[row] for row in rows]
    slices = _Slices(folder or place, ids, {image_id: files[image_id] for image_id in ids})
    known = metadata is not None or slices.dicom
    where = f"{place / metadata}" if metadata else f"the DICOM headers in {slices.folder}"
    read_origins = functools.cache(lambda: _origins(slices, patients, where, owners))
    if ids:
        problems.attempt(_check_patients, slices.folder, split_by, known=known)
    if problems and known and (patients is not None or not metadata):
        # It fails anyway: show the patients that are not known too.
        problems.attempt(read_origins)
    problems.finish()
    names = rsna_labels.KINDS if any_label else rsna_labels.SUBTYPES
    labels = labelled.states[rows, : len(names)]

    def table() -> Table:
        origins_of, warned = read_origins() if known else ([], [])
        groups = [whose.patient for whose in origins_of] if split_by == "patient" else ids
        fractions = {"test": test_fraction, "val": val_fraction}
        splits = deal(["train"] * len(ids), number_groups(groups)[0], fractions, seed, "rsna_ich")
        owner, owner_names = number_groups([getattr(whose, owners) for whose in origins_of])
        owner = owner if known else np.full(len(ids), NO_OWNER, dtype=np.int64)
        paths = [slices.path(image_id) for image_id in ids]
        report = {
            "repeated_lines": labelled.repeated,
            "left_out": left_out,
            "warnings": warned,
            **({} if slices.dicom else read_headers(paths).report),
        }
        return Table(ids, splits, labels, owner, None, [str(file) for file in paths], owner_names, report)

    def image(row: int) -> NDArray[np.uint8]:
        file = slices.path(ids[row])
        if slices.dicom:
            return _windowed_image(file, planes, image_size, resize, fix_intercept=fix_intercept)
        return decode(file, image_size, channels, resize)

    pixels = {"windows": [list(w) if w else None for w in planes], "fix_intercept": fix_intercept}
    sources = [path, *([place / metadata] if metadata else [])]
    return Dataset(
        name="rsna_ich",
        version=VERSION,
        identity={
            "options": [any_label, split_by, owners, resize],
            "size": [image_size, channels],
            "dealt": {"test": test_fraction, "val": val_fraction, "seed": seed},
            "sources": {file.name: file_sha256(file) for file in sources},
            "files": stamps_sha256(stamps_of((image_id, slices.path(image_id)) for image_id in ids)),
        }
        | (pixels if slices.dicom else {}),
        label_names=names,
        image_shape=(image_size, image_size, channels),
        table=table,
        image=image,
        licence="RSNA terms: non-commercial research and education; cite the source",
        expected={f"positives/{name}": count for name, count in zip(names, POSITIVES.get(path.name, ()), strict=False)},
    )
