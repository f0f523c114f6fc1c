"""Scores of evaluated images that a run keeps, so that questions can be asked of them without the model.

Each file ``scores/round-00012-test.parquet`` has a row per image: ``row`` (of the corpus), ``image`` (its id) and
``scores``, a list of one 16-bit code per label. The file's metadata name the labels, the round and what the scores
belong to.

**Precision.** A code is a step of 1/1,638 in the logit between -20 and 20, so a score comes back within 3.1e-4 of its
logit: at most 7.7e-5 from what it was, and within 0.031 % of it where it is small. Whether a score reaches 0.5 is kept
exactly; 0 and 1 are kept exactly; scores whose logits differ by less than a step may become equal, and never change
order. Below 2e-9 and above 1 - 2e-9 all are equal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fedmlic.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDER: Final = "scores"

LIMIT: Final = 20.0
"""Logits are told apart from ``-LIMIT`` to ``LIMIT``."""

_ZERO, _ONE, _MIDDLE = 0, 65535, 32768
_STEP = 2 * LIMIT / (_ONE - 1)

LOGIT_ERROR: Final = _STEP / 2
"""A score comes back at most so far from its logit, within the limits."""

SCORE_ERROR: Final = LOGIT_ERROR / 4
"""A score comes back at most so far from itself: the logistic function rises by at most a quarter."""

_METADATA: Final = b"fedmlic"


def encode(scores: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Codes of probabilities, of the same shape.

    Raises:
        InputError: a number is not from 0 to 1.
    """
    exact = np.asarray(scores, dtype=np.float64)
    if not bool(((exact >= 0) & (exact <= 1)).all()):
        msg = "Expected scores to be probabilities from 0 to 1, got others, or NaN. Mend the method's predict."
        raise InputError(msg)
    with np.errstate(divide="ignore"):
        logits = np.log(exact) - np.log1p(-exact)
    # Down, not to the nearest: 0.5 is where one step ends, so that none below it comes back at or above it.
    codes = np.clip(np.floor(np.clip(logits, -LIMIT, LIMIT) / _STEP) + _MIDDLE, _ZERO + 1, _ONE - 1)
    codes = np.where(exact == 0, _ZERO, np.where(exact == 1, _ONE, codes))
    return codes.astype(np.uint16)


def decode(codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The probabilities that codes stand for: the middle of each step."""
    logits = (codes.astype(np.float64) - _MIDDLE + 0.5) * _STEP
    found = 1 / (1 + np.exp(-logits))
    return np.where(codes == _ZERO, 0.0, np.where(codes == _ONE, 1.0, found)).astype(np.float32)


@dataclass(frozen=True)
class KeptScores:
    """Scores of one split's images.

    Attributes:
        round: after which the model was taken.
        split: ``test`` or ``val``.
        label_names: columns.
        rows: int64 ``[images]``, of the corpus.
        image_ids: one per image.
        codes: uint16 ``[images, labels]``.
        belongs_to: the experiment's identity and the content of its corpus.
    """

    round: int
    split: str
    label_names: tuple[str, ...]
    rows: NDArray[np.int64]
    image_ids: Sequence[str]
    codes: NDArray[np.uint16]
    belongs_to: tuple[str, str]

    @property
    def scores(self) -> NDArray[np.float32]:
        """float32 ``[images, labels]``, probabilities within ``SCORE_ERROR``."""
        return decode(self.codes)


def path_of(run: Path, number: int, split: str) -> Path:
    """Where the scores of a split after round ``number`` lie in a run folder."""
    return run / FOLDER / f"round-{number:05d}-{split}.parquet"


def write_scores(run: Path, kept: KeptScores) -> None:
    """Write the file, atomically."""
    import pyarrow as pa
    from pyarrow import parquet

    path = path_of(run, kept.round, kept.split)
    path.parent.mkdir(exist_ok=True)
    flat = pa.array(np.ascontiguousarray(kept.codes).reshape(-1))
    scores = pa.FixedSizeListArray.from_arrays(flat, kept.codes.shape[1])
    about = {
        "version": 1,
        "round": kept.round,
        "split": kept.split,
        "identity": kept.belongs_to[0],
        "corpus": kept.belongs_to[1],
        "label_names": list(kept.label_names),
        "logit_limit": LIMIT,
        "precision": f"a score within {SCORE_ERROR:.2g}, its logit within {LOGIT_ERROR:.2g}",
    }
    columns = {"row": pa.array(kept.rows), "image": pa.array(list(kept.image_ids)), "scores": scores}
    table = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(about).encode()})
    temporary = path.with_name(f".{path.name}.tmp")
    # Parquet has no 16-bit numbers; with the bytes of the 32-bit ones apart, two of four are all zero.
    split = {"scores.list.element": "BYTE_STREAM_SPLIT"}
    parquet.write_table(table, temporary, compression="zstd", use_dictionary=False, column_encoding=split)
    temporary.replace(path)


def read_scores(path: Path) -> KeptScores:
    """Read a file of ``write_scores``.

    Raises:
        InputError: there is none, or it is damaged.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        about: dict[str, Any] = json.loads(table.schema.metadata[_METADATA])
        names = tuple(about["label_names"])
        flat = table["scores"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        rows = table["row"].to_numpy()
        codes = flat.astype(np.uint16).reshape(len(rows), len(names))
        belongs_to = (about["identity"], about["corpus"])
        return KeptScores(about["round"], about["split"], names, rows, table["image"].to_pylist(), codes, belongs_to)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        msg = f"Expected {path} to hold the scores that a run kept, got {error}. Delete it to have them computed."
        raise InputError(msg) from None


def kept_rounds(run: Path) -> list[int]:
    """Rounds of which scores are kept, ascending."""
    names = [file.name.split("-")[1] for file in (run / FOLDER).glob("round-*-*.parquet")]
    return sorted({int(name) for name in names if name.isdecimal()})


def keep_only(run: Path, wanted: Sequence[int]) -> None:
    """Delete the scores of all other rounds, and what was half-written."""
    folder = run / FOLDER
    for number in kept_rounds(run):
        if number not in wanted:
            for file in folder.glob(f"round-{number:05d}-*.parquet"):
                file.unlink(missing_ok=True)
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
