"""The table of labels in the event log: small enough for thousands of labels over hundreds of rounds.

An event ``labels`` says of every label of a split how well it was found. As JSON lists that is 70 bytes a label; with
1,628 labels, two splits and 500 rounds the log would be over 100 MB. So the columns of ``PACKED``, which change from
round to round, are written as one text (float32, bytes grouped by significance, zlib, base64), and the others as lists
only where they differ from the last event of the split: 15 to 25 MB. Runs of earlier versions have lists everywhere,
which are read as they are.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LABELS: Final = "labels"
"""Kind of the event."""

PACKED: Final = ("ap", "precision", "recall", "f1")
"""Columns that are packed: shares, NaN where a label is not evaluable, kept as float32."""

KEY: Final = "packed"
"""Of an event: the packed columns."""

_OWN: Final = ("event", "round", "split", KEY)


class Packer:
    """Makes events small, one after another as they are appended to a log."""

    def __init__(self) -> None:
        self._last: dict[str, dict[str, list[Any]]] = {}

    def pack(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """One event as it is written.

        Args:
            values: ``round``, ``split`` and a list over labels per column.
        """
        split = str(values["split"])
        steady = {name: list(values[name]) for name in values if name not in (*PACKED, *_OWN)}
        changing = [name for name in PACKED if name in values]
        written: dict[str, Any] = {"round": values["round"], "split": split}
        if steady != self._last.get(split):
            written |= steady
            self._last[split] = steady
        if changing:
            block = np.stack([np.asarray(values[name], dtype="<f4") for name in changing])
            written[KEY] = {"columns": changing, "float32": _text_of(block)}
        return written


class Unpacker:
    """Reads such events in the order in which they were written."""

    def __init__(self) -> None:
        self._last: dict[str, dict[str, list[Any]]] = {}

    def unpack(self, event: Mapping[str, Any]) -> dict[str, Any] | None:
        """One event with all its columns: lists, and float32 arrays in place of what was packed.

        Args:
            event: as it was written, by this version or an earlier one.

        Returns:
            None if it is damaged, or if the event that it refers to is missing.
        """
        own = {name: event[name] for name in ("event", "round", "split") if name in event}
        split = str(event.get("split"))
        steady = {name: event[name] for name in event if name not in _OWN}
        if KEY not in event:
            return {**own, **steady}
        if steady:
            self._last[split] = steady
        steady = self._last.get(split, {})
        if LABEL not in steady:
            return None
        found = _columns_of(event[KEY], len(steady[LABEL]))
        return None if found is None else {**own, **steady, **found}


LABEL: Final = "label"
"""The column of names, which every table of labels has."""


def listed(event: Mapping[str, Any]) -> dict[str, Any]:
    """An unpacked event with lists in place of arrays, and None in place of NaN, as JSON has it."""
    return {
        name: [None if value != value else value for value in column.tolist()]  # noqa: PLR0124  (NaN)
        if isinstance(column, np.ndarray)
        else column
        for name, column in event.items()
    }


def _text_of(block: NDArray[np.float32]) -> str:
    grouped = block.reshape(-1, 1).view(np.uint8).T  # the bytes of exponents together, which are alike
    return base64.b64encode(zlib.compress(grouped.tobytes(), 6)).decode("ascii")


def _columns_of(packed: Any, num_labels: int) -> dict[str, NDArray[np.float32]] | None:  # noqa: ANN401  (JSON is any)
    try:
        names: Sequence[str] = packed["columns"]
        data = zlib.decompress(base64.b64decode(packed["float32"], validate=True))
        grouped = np.frombuffer(data, dtype=np.uint8).reshape(4, len(names) * num_labels)
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error):
        return None
    block = np.ascontiguousarray(grouped.T).view("<f4").reshape(len(names), num_labels).astype(np.float32)
    return dict(zip(names, block, strict=True))
