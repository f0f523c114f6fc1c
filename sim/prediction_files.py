"""Write what a model says of images as CSV or JSON, image by image: a folder of millions fits in no memory.

A file takes its place when it is complete; after an error or an interruption the one from before is still there.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fedmlic.errors import InputError
from fedmlic.record import jsonable
from sim.schemas import tag

if TYPE_CHECKING:
    from sim.predict import Entry, Prediction

SEPARATOR = "|"
"""Between the predicted labels of an image in a CSV."""

Sink = Callable[["Entry"], None]
"""Takes the images one by one."""


@contextmanager
def csv_file(path: Path, found: Prediction) -> Iterator[Sink]:
    r"""A CSV with one row per image: ``image``, ``present``, then one column of probabilities per label.

    ``present`` holds the predicted labels, the most probable first, separated by ``|`` (a bar in a name is written
    as ``\\|``). A byte of a file's name that is no UTF-8 is written as an escape, as in all outputs.

    Raises:
        InputError: the file cannot be written.
    """
    with _replaced(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "present", *found.label_names])

        def write(entry: Entry) -> None:
            present = (name.replace("\\", "\\\\").replace(SEPARATOR, "\\" + SEPARATOR) for name in entry.present(names))
            # repr of a float32 is the shortest text that reads back as the same float32.
            writer.writerow([str(entry.file), SEPARATOR.join(present), *(f"{score!s}" for score in entry.scores)])

        names = found.label_names
        yield write


@contextmanager
def json_file(path: Path, found: Prediction) -> Iterator[Sink]:
    """What ``fedmlic predict --json`` prints, with one image per line.

    Raises:
        InputError: the file cannot be written.
    """
    with _replaced(path) as file:
        about = {"schema": tag("predict"), **found.about}
        head = json.dumps(jsonable(about), ensure_ascii=False, allow_nan=False)
        file.write(f'{head[:-1]}, "images": [')
        before = "\n"

        def write(entry: Entry) -> None:
            nonlocal before
            file.write(before + json.dumps(jsonable(entry.to_json(found.label_names)), ensure_ascii=False))
            before = ",\n"

        yield write
        bad = json.dumps(bad_files(found), ensure_ascii=False)
        file.write(f'\n], "num_bad_files": {len(found.problems)}, "bad_files": {bad}}}\n')


def bad_files(found: Prediction) -> list[dict[str, str]]:
    """The files that could not be read, with what is wrong with them."""
    return [{"image": str(file), "problem": problem} for file, problem in found.problems]


@contextmanager
def _replaced(path: Path) -> Iterator[TextIO]:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        # File names may hold bytes that are no UTF-8.
        file = temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="")
    except OSError as error:
        msg = f"Expected {path} to be a file that can be written, got {error}. Choose another."
        raise InputError(msg) from None
    try:
        with file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
