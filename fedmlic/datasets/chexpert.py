"""CheXpert: 223,414 chest X-rays of 64,540 patients, with labels that may be uncertain or not mentioned.

Source: Irvin et al., "CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and
Expert Comparison" (AAAI 2019); https://stanfordmlgroup.github.io/competitions/chexpert/.

A cell says ``1.0`` (present), ``0.0`` (absent), ``-1.0`` (uncertain) or nothing (not
mentioned). By default these are the four states of ``fedmlic.labels``, unchanged: uncertain
entries are ``UNCERTAIN`` and unmentioned ones ``UNKNOWN``. The policies of the field are
options; they rewrite what the table says, in this order: the No Finding rule, blanks,
uncertain entries.

Paths in the tables begin with the name of the release (``CheXpert-v1.0-small/train/...``);
images are found by what follows, below ``train/`` and ``valid/`` of the root, of its
sub-folders, or, as the full release is delivered in batches, directly in its sub-folders.
Training images come from ``train.csv``, test images from ``valid.csv``: the official test
set is not part of the download.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple

import numpy as np
from pydantic import Field

from fedmlic.dataset import Dataset, Table
from fedmlic.files import file_sha256, stamps_of, stamps_sha256
from fedmlic.formats import csv_rows
from fedmlic.images import Resize, decode
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.problems import Problems
from fedmlic.sources.groups import crossing, deal, number_groups
from fedmlic.sources.headers import read_headers
from fedmlic.sources.options import Channels, HeldOut, ImageSize, Root, Seed
from fedmlic.sources.place import source_root

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "2"
OBSERVATIONS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The 14 columns of the tables, in their order."""

LABEL_SETS = {
    "all": OBSERVATIONS,
    "findings": tuple(sorted(OBSERVATIONS[1:])),
    "competition": ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"),
}
ABOUT = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")
STATES: Final = {
    "1.0": PRESENT,
    "1": PRESENT,
    "0.0": ABSENT,
    "0": ABSENT,
    "-1.0": UNCERTAIN,
    "-1": UNCERTAIN,
    "": UNKNOWN,
}
SEXES = ("Male", "Female", "Unknown")
PROJECTIONS = {"frontal": ("AP", "PA", "LL", "RL"), "lateral": ("",)}
"""What AP/PA may say, by what Frontal/Lateral says."""

OLDEST = 120
POLICIES: Final = {"uncertain": UNCERTAIN, "unknown": UNKNOWN, "absent": ABSENT, "present": PRESENT}
PLACE = re.compile(r"(?:^|/)(train|valid)/(patient[0-9]+)/(study[0-9]+)/([^/]+)$")


class _Entry(NamedTuple):
    """One line of a table."""

    image_id: str
    split: str
    patient: str
    study: str
    sex: str
    view: str
    states: tuple[int, ...]


def _tables(place: Path, csv: str, problems: Problems) -> dict[str, Path]:
    """The tables of training and test images, each in the root or in one of its sub-folders."""
    found = {}
    for split, name in (("train", csv), ("test", "valid.csv")):
        homes = [folder for folder in (place, *_children(place)) if (folder / name).is_file()]
        if len(homes) == 1:
            found[split] = homes[0] / name
        else:
            got = f"it in {', '.join(home.name for home in homes)}" if homes else "none"
            problems.add(
                f"Expected {place} to hold {name} once, got {got}. Give the folder of one whole release as root."
            )
    return found


def _children(place: Path) -> list[Path]:
    return sorted(child for child in place.iterdir() if child.is_dir())


def _patients(place: Path, problems: Problems) -> dict[str, Path]:
    """Where each patient's folder lies, by ``train/patient00001`` or ``valid/patient64541``."""
    children = _children(place)
    # A batch of the full release holds the training patients directly.
    pairs = [(home / folder, folder) for home in (place, *children) for folder in ("train", "valid")]
    pairs += [(child, "train") for child in children if child.name not in {"train", "valid"}]
    found: dict[str, Path] = {}
    for folder, side in pairs:
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name.startswith("patient"))
        for name in names:
            key = f"{side}/{name}"
            if key in found:
                problems.add(f"{name} lies in {found[key].parent} and in {folder}")
            found.setdefault(key, folder / name)
    return found


def _entries(tables: dict[str, Path], problems: Problems) -> list[_Entry]:
    """All lines that can be used, sorted by image id."""
    found: dict[str, _Entry] = {}
    for split, path in tables.items():
        problems.attempt(_read_table, path, split, found, problems)
    return [found[image_id] for image_id in sorted(found)]


def _read_table(path: Path, split: str, found: dict[str, _Entry], problems: Problems) -> None:
    """Add the lines of one table that can be used to what was found."""
    own = problems.within(f"Expected {path} to describe one image per line", complete=True)
    empty = True
    for line, (where, sex, age, side, projection, *cells) in csv_rows.rows(path, [*ABOUT, *OBSERVATIONS], own):
        empty = False
        match = PLACE.search(where.replace("\\", "/"))
        wrong = _wrong(sex, age, side, projection)
        wrong += [
            f"{cell!r} in column {name!r}" for name, cell in zip(OBSERVATIONS, cells, strict=True) if cell not in STATES
        ]
        if match is None:
            wrong.append(f"path {where!r}, which does not end in train|valid/patient/study/file")
        elif match[0].lstrip("/") in found:
            wrong.append(f"{where!r} again")
        if match is None or wrong:
            own.add(f"{path} line {line}: {'; '.join(wrong)}")
            continue
        view = projection.upper() if side.lower() == "frontal" else side.lower()
        states = tuple(STATES[cell] for cell in cells)
        image_id = match[0].lstrip("/")
        study = f"{match[2]}/{match[3]}"
        found[image_id] = _Entry(image_id, split, match[2], study, sex.capitalize(), view, states)
    if empty and not own:
        own.add(f"Expected {path} to hold images below its header, got none. Download it again.")


def _wrong(sex: str, age: str, side: str, projection: str) -> list[str]:
    """What is impossible in the columns about the image."""
    wrong = []
    if sex.capitalize() not in SEXES:
        wrong.append(f"{sex!r} in column 'Sex', which may say {', '.join(SEXES)}")
    if not re.fullmatch("[0-9]{1,3}", age) or int(age) > OLDEST:
        wrong.append(f"{age!r} in column 'Age', which may say 0 to {OLDEST}")
    allowed = PROJECTIONS.get(side.lower())
    if allowed is None:
        wrong.append(f"{side!r} in column 'Frontal/Lateral', which may say Frontal or Lateral")
    elif projection.upper() not in allowed:
        wrong.append(
            f"{projection!r} in column 'AP/PA', which may say {', '.join(PROJECTIONS['frontal'])} of a frontal view "
            "and nothing of a lateral one"
        )
    return wrong


def _of_views(entries: list[_Entry], views: str) -> list[_Entry]:
    frontal = {"all", "frontal"}
    return [e for e in entries if views in ({"all", "lateral"} if e.view == "lateral" else {e.view, *frontal})]


def _by_number(entry: _Entry) -> tuple[bool, list[str | int], str]:
    """A key that puts study 2 before study 10, which text does not; training images first."""
    # Texts and numbers take turns, so that equal places hold equal types.
    parts = [int(part) if place % 2 else part for place, part in enumerate(re.split("([0-9]+)", entry.image_id))]
    return entry.split != "train", parts, entry.image_id


def _first_images(entries: list[_Entry]) -> list[_Entry]:
    """Each patient's image of the lowest study, in it that of the lowest view, in the given order."""
    first: dict[str, _Entry] = {}
    for entry in sorted(entries, key=_by_number):
        first.setdefault(entry.patient, entry)
    return [entry for entry in entries if first[entry.patient] is entry]


def _chosen(
    entries: list[_Entry], patients: dict[str, Path], rules: tuple[str, bool, str], problems: Problems
) -> tuple[list[_Entry], list[Path], dict[str, int]]:
    """The entries to keep with their files, and how many each rule left out."""
    views, one_each, missing = rules
    kept = _of_views(entries, views)
    left_out = {"other_view": len(entries) - len(kept)}
    num_seen = len(kept)
    if missing == "leave_out":  # before a patient's first image is chosen: it is one of those that are there
        kept, _ = _located(kept, patients, missing, problems)
    left_out["no_file"] = num_seen - len(kept)
    if one_each:
        num_there = len(kept)
        kept = _first_images(kept)
        left_out["later_image_of_patient"] = num_there - len(kept)
    return *_located(kept, patients, missing, problems), left_out


def _located(
    kept: list[_Entry], patients: dict[str, Path], missing: str, problems: Problems
) -> tuple[list[_Entry], list[Path]]:
    """Entries with their files; those without one are problems or left out."""
    entries, files = [], []
    for entry in kept:
        side, patient, study, name = entry.image_id.split("/")
        file = patients.get(f"{side}/{patient}", Path()) / study / name
        if file.is_file():
            entries.append(entry)
            files.append(file)
        elif missing == "error":
            problems.add(f"no image {entry.image_id!r}, which a table names")
    return entries, files


def _states(
    entries: list[_Entry], names: Sequence[str], policies: tuple[bool, str, str]
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """int8 ``[images, 14]`` as the tables say, and int8 ``[images, labels]`` under the policies."""
    rule, blank, uncertain = policies
    raw = np.array([entry.states for entry in entries], dtype=np.int8).reshape(len(entries), len(OBSERVATIONS))
    states = raw.copy()
    if rule:
        findings = np.array([name not in {"No Finding", "Support Devices"} for name in OBSERVATIONS])
        states[np.ix_(raw[:, 0] == PRESENT, findings)] = ABSENT
    states[states == UNKNOWN] = POLICIES[blank]
    states[states == UNCERTAIN] = POLICIES[uncertain]
    return raw, states[:, [OBSERVATIONS.index(name) for name in names]]


def _report(entries: list[_Entry], raw: NDArray[np.int8]) -> dict[str, object]:
    """What the tables say about the kept images, before any policy."""
    training = raw[[entry.split == "train" for entry in entries]]
    rows = {tuple(row) for row in zip((e.study for e in entries), map(tuple, raw.tolist()), strict=True)}
    return {
        "train_states": {
            name: {word: int((training[:, place] == state).sum()) for word, state in POLICIES.items()}
            for place, name in enumerate(OBSERVATIONS)
        },
        "test_unknown_or_uncertain": int((raw[[entry.split == "test" for entry in entries]] < 0).sum()),
        "studies_whose_images_differ": len(rows) - len({entry.study for entry in entries}),
    }


def chexpert(
    *,
    root: Root,
    csv: Annotated[str, Field(min_length=1)] = "train.csv",
    label_set: Literal["all", "findings", "competition"] = "all",
    uncertain: Literal["uncertain", "unknown", "absent", "present"] = "uncertain",
    blank: Literal["unknown", "absent"] = "unknown",
    no_finding_rule: bool = False,
    views: Literal["all", "frontal", "lateral", "AP", "PA"] = "all",
    unique_patients: bool = False,
    owners: Literal["patient", "study", "view", "sex"] = "patient",
    missing: Literal["error", "leave_out"] = "error",
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
    val_fraction: HeldOut = 0.1,
    seed: Seed = 0,
) -> Dataset:
    """CheXpert, small or full, as downloaded.

    Args:
        root: the folder that holds ``train.csv``, or the one above it; ``~`` is your home.
        csv: name of the training table, such as that of another labeller.
        label_set: ``all`` 14 observations in the table's order; the 13 ``findings`` without
            "No Finding", sorted; or the 5 labels of the ``competition``.
        uncertain: what an uncertain entry becomes: it stays ``uncertain``, which no loss or
            metric counts; ``unknown`` (U-Ignore without a trace); ``absent`` (U-Zeros);
            ``present`` (U-Ones).
        blank: what an unmentioned observation becomes: ``unknown``, or ``absent`` as in the
            paper.
        no_finding_rule: where "No Finding" is present, every other observation but "Support
            Devices" is absent, as in torchxrayvision.
        views: keep one kind of view only; ``AP`` and ``PA`` are frontal.
        unique_patients: keep the first image of each patient only, that of the lowest study number
            and in it of the lowest view number, among those of ``views`` and, with
            ``missing="leave_out"``, those that are there.
        owners: natural clients: patients, studies, views or sexes.
        missing: what to do with images of the tables that the disk lacks: an error, or leave
            them out and count them.
        image_size: height and width of stored images, pixels.
        resize: ``squash`` changes the aspect, ``crop`` cuts the longer side around the
            centre, ``pad`` adds black bars.
        channels: 3 (the grey value three times) or 1.
        val_fraction: share of the training images for validation, whole patients.
        seed: of that random split.

    Raises:
        InputError: the tables or the images are wrong; all problems at once.
    """
    place = source_root("chexpert", root, csv)
    problems = Problems(f"Expected {place} to be a whole and correct CheXpert", complete=True)
    tables = _tables(place, csv, problems)
    patients = _patients(place, problems)
    every = _entries(tables, problems)
    seen = _of_views(every, views)
    for patient in crossing([entry.patient for entry in seen], [entry.split for entry in seen]):
        problems.add(f"{patient} has images in {csv} and in valid.csv")
    entries, files, left_out = _chosen(every, patients, (views, unique_patients, missing), problems)
    problems.finish()
    ids = [entry.image_id for entry in entries]
    names = LABEL_SETS[label_set]
    raw, labels = _states(entries, names, (no_finding_rule, blank, uncertain))
    groups, _ = number_groups([entry.patient for entry in entries])
    splits = deal([entry.split for entry in entries], groups, {"val": val_fraction}, seed, "chexpert")
    owner, owner_names = number_groups([str(getattr(entry, owners)) for entry in entries])

    def table() -> Table:
        report = {**read_headers(files).report, **_report(entries, raw), "left_out": left_out}
        return Table(ids, splits, labels, owner, None, [str(file) for file in files], owner_names, report)

    whole = views == "all" and not unique_patients
    return Dataset(
        name="chexpert",
        version=VERSION,
        identity={
            "options": [label_set, uncertain, blank, no_finding_rule, views, unique_patients, owners, resize],
            "size": [image_size, channels],
            "dealt": {"val": val_fraction, "seed": seed},
            "sources": {path.name: file_sha256(path) for path in tables.values()},
            "files": stamps_sha256(stamps_of(zip(ids, files, strict=True))),
        },
        label_names=names,
        image_shape=(image_size, image_size, channels),
        table=table,
        image=lambda row: decode(files[row], image_size, channels, resize),
        licence="Stanford University Dataset Research Use Agreement; no redistribution",
        expected={"test": 234, **({} if val_fraction else {"train": 223414})} if whole else {},
    )
