"""FrugalMCT: the predictions of 2020 that HAPI continues, as their repository holds them.

Source: Chen, Zaharia, Zou, "Efficient Online ML API Selection for Multi-Label Classification
Tasks" (ICML 2022), github.com/lchen001/FrugalMCT. Each benchmark is a folder
``mlserviceperformance_PASCAL``, ``..._MIR`` or ``..._COCO`` with ``meta.csv`` (the number and
vendor of each model) and, for model 0, ``Model0_PredictedLabel.txt`` and
``Model0_TrueLabel.txt``: JSON objects from an image's stem to a list of
``{"transcription": name, "confidence": number}``. Other than HAPI's files they keep the
confidence of every single name. Some predictions are stored zipped.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from fedmlic.errors import InputError
from fedmlic.formats import csv_rows
from fedmlic.formats.hapi import Answers, Run, is_name, load_json
from fedmlic.problems import Problems

if TYPE_CHECKING:
    from collections.abc import Iterable

DATE = "2020"
"""The files say no date."""


def _folder(place: Path, benchmark: str) -> Path | None:
    name = f"mlserviceperformance_{benchmark.upper()}"
    candidates = (place, place / name, place / "dataset" / name)
    return next((folder for folder in candidates if folder.name == name and folder.is_dir()), None)


def runs(place: Path, benchmark: str) -> list[Run]:
    """All models whose predictions are there, named like HAPI's APIs; none where ``place`` is no FrugalMCT."""
    folder = _folder(place, benchmark)
    if folder is None:
        return []
    rows = (row.cells for row in csv_rows.rows(folder / "meta.csv", ["Index", "MLaaS(API)"]))
    files = [
        (f"{_vendor(vendor)}_mic", _present(folder / f"Model{number}_PredictedLabel.txt")) for number, vendor in rows
    ]
    return sorted(Run(benchmark, api, DATE, file, "frugalmct") for api, file in files if file is not None)


def _present(file: Path) -> Path | None:
    """The file, or else the archive that it is stored in, or else nothing."""
    return next((path for path in (file, file.with_suffix(".zip")) if path.is_file()), None)


def _content(path: Path) -> bytes:
    if path.suffix != ".zip":
        return path.read_bytes()
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if PurePosixPath(name).name == f"{path.stem}.txt"]
            if len(names) != 1:
                msg = f"{path.stem}.txt {len(names)} times in the archive"
                raise ValueError(msg)
            return archive.read(names[0])
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(str(error)) from error


def _vendor(text: str) -> str:
    """``google`` of ``Google``; ``ssd`` of ``GitHub(SSD)``."""
    inside = re.search(r"\((.+)\)", text)
    return (inside[1] if inside else text).lower()


def predictions(run: Run) -> Answers:
    """A model's answers.

    Raises:
        InputError: the file is not as described above; all problems at once.
    """
    return _read(run.path, with_confidence=True)


def truth(place: Path, benchmark: str, problems: Problems | None = None) -> Answers:
    """A benchmark's own labels.

    Args:
        place: the folder of the benchmarks' folders.
        benchmark: ``coco``, ``pascal`` or ``mir``.
        problems: takes what is wrong with single images, which are left out. Without it they
            are raised, all at once.

    Raises:
        InputError: there are none, or they are not as described above.
    """
    return _read(truth_file(place, benchmark), problems, with_confidence=False)


def truth_file(place: Path, benchmark: str) -> Path:
    """Where a benchmark's own labels lie.

    Raises:
        InputError: there are none.
    """
    folder = _folder(place, benchmark)
    found = sorted(folder.glob("Model*_TrueLabel.txt")) if folder else []
    if not found:
        msg = f"Expected the labels of {benchmark} at {folder or place}, got no Model*_TrueLabel.txt. Download it."
        raise InputError(msg)
    return found[0]


def _read(path: Path, problems: Problems | None = None, *, with_confidence: bool) -> Answers:
    own = Problems(f"Expected {path} to hold lists of transcription and confidence by image", outer=problems)
    ids, names, confidences = [], [], []
    for example_id, found in load_json(path, dict, _content).items():
        try:
            said = [(_name(entry), _number(entry, with_confidence=with_confidence)) for entry in found]
        except (TypeError, KeyError, ValueError) as error:
            own.add(f"{example_id}: {found!r:.80} ({type(error).__name__}: {error})")
            continue
        ids.append(example_id)
        names.append(tuple(name for name, _ in said))
        confidences.append(tuple(confidence for _, confidence in said))
    if problems is None:
        own.finish()
    return Answers(ids, names, _means(confidences), confidences)


def _name(entry: dict[str, object]) -> str:
    name = entry["transcription"]
    if not is_name(name):
        msg = f"transcription {name!r} is no name"
        raise ValueError(msg)
    return str(name)


def _number(entry: dict[str, object], *, with_confidence: bool) -> float:
    confidence = entry["confidence"] if with_confidence else 1.0
    if not isinstance(confidence, int | float) or isinstance(confidence, bool) or not 0 <= confidence <= 1:
        msg = f"confidence {confidence!r} is no number from 0 to 1"
        raise ValueError(msg)
    return float(confidence)


def _means(confidences: Iterable[tuple[float, ...]]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array([sum(each) / len(each) if each else 0.0 for each in confidences], dtype=np.float32)
