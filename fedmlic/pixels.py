"""Pixels of a corpus on their way to the disk: drawn in parallel, written in order, kept when a build is killed.

Images are appended in row order to one file. Every few seconds, once everything so far is
on the disk, a journal beside it says how far the file is good. The next build with the same
journal cuts the file there and goes on; its bytes are those of a build that nobody stopped.

Rows that cannot be drawn are left out of the file and noted. At most ``workers + 2`` blocks of
``BLOCK_BYTES`` are in memory.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from fedmlic.stores import IMAGE_HASHES, PIXELS, content_hash, encode_jpeg

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from numpy.typing import NDArray

BLOCK_IMAGES = 256
"""Most images drawn per task."""

BLOCK_BYTES = 1 << 25
"""Most bytes of pixels drawn per task, unless a single image has more."""

MAX_EXAMPLES = 20
"""Groups of equal images that a report names, and most names of each."""

CHECKPOINT_S = 5.0
"""Least time between two entries of the journal, and most work that a kill can cost."""

RECORD = np.dtype([("bytes", "<i8"), ("hash", "<u8"), ("stored", "<u8")])
"""What the journal keeps of each written image: its length, and hashes of its pixels and of what is stored of them."""

JOURNAL, RECORDS = "journal.json", "records.bin"


class Drawn(NamedTuple):
    """A run of rows: uint8 ``[rows, height, width, channels]``, and by place what is wrong with a row."""

    pixels: NDArray[np.uint8]
    problems: dict[int, str]


@dataclass(frozen=True)
class Plan:
    """What is written where.

    Attributes:
        folder: the corpus that receives ``images.u8.npy``, or ``images.blob`` and its offsets,
            and ``images.hashes.npy``.
        journal: a folder for the journal.
        shape: images, height, width, channels.
        storage: ``"raw"`` or ``"jpeg"``.
        maker: everything that decides the bytes; a journal of another maker is not continued.
        draw: draws the rows ``start`` to ``stop`` of the stored order; called from several threads.
        workers: threads.
        progress: called with (rows done, rows in all).
    """

    folder: Path
    journal: Path
    shape: tuple[int, int, int, int]
    storage: str
    maker: str
    draw: Callable[[int, int], Drawn]
    workers: int
    progress: Callable[[int, int], None] | None = None

    @property
    def pixels(self) -> Path:
        """The file that grows."""
        return self.folder / PIXELS[self.storage]

    @property
    def block(self) -> int:
        """Rows drawn per task."""
        return max(1, min(BLOCK_IMAGES, BLOCK_BYTES // max(1, int(np.prod(self.shape[1:])))))

    def header(self, num_images: int) -> bytes:
        """The beginning of the file for that many images; its length is the same for every number."""
        if self.storage != "raw":
            return b""
        from io import BytesIO

        buffer = BytesIO()
        about = {"descr": "|u1", "fortran_order": False, "shape": (num_images, *self.shape[1:])}
        np.lib.format.write_array_header_1_0(buffer, about)
        return buffer.getvalue()


class Written(NamedTuple):
    """What ``write_pixels`` wrote.

    Attributes:
        good: bool ``[rows]``, which rows of the stored order are in the file.
        problems: row and reason of every other, in order.
        hashes: uint64 ``[images written]`` of the drawn pixels; equal pixels have equal hashes.
    """

    good: NDArray[np.bool_]
    problems: list[tuple[int, str]]
    hashes: NDArray[np.uint64]


def write_pixels(plan: Plan) -> Written:
    """Draw every row and write those that can be drawn, going on where an earlier call was stopped."""
    state = _restore(plan)
    total = plan.shape[0]
    if state.done and plan.progress is not None:
        plan.progress(state.done, total)
    with _Files(plan, state) as files, closing(_blocks(plan, state.done)) as blocks:
        for block in blocks:
            files.append(block)
            if plan.progress is not None:
                plan.progress(files.state.done, total)
    records = np.fromfile(plan.journal / RECORDS, dtype=RECORD)
    _finish(plan, records)
    good = np.ones(total, dtype=np.bool_)
    good[[row for row, _ in files.state.problems]] = False
    return Written(good, list(files.state.problems), records["hash"])


def _finish(plan: Plan, records: NDArray[np.void]) -> None:
    """Say how many images there are, now that it is known, and keep their hashes."""
    np.save(plan.folder / IMAGE_HASHES, np.ascontiguousarray(records["stored"]).astype(np.uint64))
    if plan.storage == "raw":
        with plan.pixels.open("r+b") as file:
            file.write(plan.header(len(records)))
    else:
        offsets = np.concatenate(([0], np.cumsum(records["bytes"]))).astype(np.int64)
        np.save(plan.folder / "images.offsets.npy", offsets)


# Drawing


class _Block(NamedTuple):
    """A run of rows as it is written."""

    num_rows: int
    data: list[bytes]
    records: NDArray[np.void]
    problems: tuple[tuple[int, str], ...]


def _blocks(plan: Plan, start: int) -> Generator[_Block]:
    """All blocks from row ``start`` on, in order, a few drawn ahead."""
    total = plan.shape[0]
    starts = deque(range(start, total, plan.block))
    waiting: deque[Future[_Block]] = deque()
    with ThreadPoolExecutor(plan.workers) as pool:
        try:
            while starts or waiting:
                # No more than these: finished blocks must not pile up in front of a slow disk.
                while starts and len(waiting) <= plan.workers:
                    first = starts.popleft()
                    waiting.append(pool.submit(_block, plan, first, min(first + plan.block, total)))
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _block(plan: Plan, start: int, stop: int) -> _Block:
    drawn = plan.draw(start, stop)
    images = [image for place, image in enumerate(drawn.pixels) if place not in drawn.problems]
    records = np.empty(len(images), dtype=RECORD)
    records["hash"] = [hash_pixels(image) for image in images]
    raw = plan.storage == "raw"
    data = [image.tobytes() if raw else encode_jpeg(image) for image in images]
    records["stored"] = records["hash"] if raw else [content_hash(content) for content in data]
    records["bytes"] = [len(content) for content in data]
    problems = tuple((start + place, text) for place, text in sorted(drawn.problems.items()))
    return _Block(stop - start, data, records, problems)


def hash_pixels(image: NDArray[np.uint8]) -> int:
    """64 bits: equal for equal pixels, and for others with a chance of 5e-20."""
    return content_hash(np.ascontiguousarray(image).data)


def equal_images(image_ids: list[str], splits: list[str], hashes: NDArray[np.uint64]) -> dict[str, Any]:
    """Images whose stored pixels equal another's.

    Args:
        image_ids: one per image.
        splits: likewise.
        hashes: uint64 ``[images]`` of ``hash_pixels``.

    Returns:
        JSON values: ``groups`` of equal images, ``images`` in them, ``groups_across_splits``
        (images to test on that were trained on) and ``examples`` (ids of the first groups).
    """
    _, group, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    places = np.flatnonzero(counts[group] > 1)
    places = places[np.argsort(group[places], kind="stable")]
    members = [part.tolist() for part in np.split(places, np.flatnonzero(np.diff(group[places])) + 1)]
    groups = sorted(part for part in members if part)
    return {
        "groups": len(groups),
        "images": len(places),
        "groups_across_splits": sum(len({splits[row] for row in rows}) > 1 for rows in groups),
        "examples": [[image_ids[row] for row in rows[:MAX_EXAMPLES]] for rows in groups[:MAX_EXAMPLES]],
    }


# The journal


class _State(NamedTuple):
    """How far the files are good."""

    done: int
    num_bytes: int
    problems: tuple[tuple[int, str], ...]

    @property
    def written(self) -> int:
        return self.done - len(self.problems)


class _Files:
    """The growing files and their journal."""

    def __init__(self, plan: Plan, state: _State) -> None:
        self.state = state
        self._plan = plan
        self._noted_s = time.monotonic()

    def __enter__(self) -> Self:
        self._pixels = self._plan.pixels.open("ab")
        self._records = (self._plan.journal / RECORDS).open("ab")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            # After an error the disk may be full; what was noted before still holds.
            with suppress(*([] if kind is None else [OSError])):
                self._note()
        finally:
            with suppress(OSError):
                self._pixels.close()
                self._records.close()

    def append(self, block: _Block) -> None:
        """Write a block behind the last one."""
        self._pixels.writelines(block.data)
        self._records.write(block.records.tobytes())
        before = self.state
        # One assignment, so that an interrupt sees either the old state or the new one.
        self.state = _State(
            before.done + block.num_rows,
            before.num_bytes + int(block.records["bytes"].sum()),
            before.problems + block.problems,
        )
        if time.monotonic() - self._noted_s >= CHECKPOINT_S:
            self._note()

    def _note(self) -> None:
        for file in (self._pixels, self._records):
            file.flush()
            os.fsync(file.fileno())
        _write_journal(self._plan, self.state)
        self._noted_s = time.monotonic()


def _write_journal(plan: Plan, state: _State) -> None:
    new = plan.journal / f"{JOURNAL}.new"
    with new.open("w", encoding="utf-8") as file:
        json.dump({"maker": plan.maker, "record": str(RECORD), **state._asdict()}, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(plan.journal / JOURNAL)


def _restore(plan: Plan) -> _State:
    """Open the files as far as the journal vouches for them, or new ones."""
    state = _read_journal(plan)
    if state is None:
        # First of all: an old journal must never vouch for what is written now.
        (plan.journal / JOURNAL).unlink(missing_ok=True)
        header = plan.header(plan.shape[0])
        plan.pixels.write_bytes(header)
        (plan.journal / RECORDS).write_bytes(b"")
        return _State(0, len(header), ())
    state = _without_mended(plan, state)
    os.truncate(plan.pixels, state.num_bytes)
    os.truncate(plan.journal / RECORDS, state.written * RECORD.itemsize)
    _write_journal(plan, state)  # it may have gone back; a file cut shorter than the old entry says is drawn again
    return state


def _read_journal(plan: Plan) -> _State | None:
    """The journal's last entry, if it is this plan's and the files are as long as it says."""
    try:
        found = json.loads((plan.journal / JOURNAL).read_text(encoding="utf-8"))
        problems = tuple((int(row), str(text)) for row, text in found["problems"])
        state = _State(int(found["done"]), int(found["num_bytes"]), problems)
        long_enough = (
            plan.pixels.stat().st_size >= state.num_bytes
            and (plan.journal / RECORDS).stat().st_size >= state.written * RECORD.itemsize
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if found["maker"] == plan.maker and found.get("record") == str(RECORD) and long_enough else None


def _without_mended(plan: Plan, state: _State) -> _State:
    """Go back to the first row that could not be drawn and now can: a disk that was away may be back."""
    for place, (row, _) in enumerate(state.problems):
        if not plan.draw(row, row + 1).problems:
            records = np.fromfile(plan.journal / RECORDS, dtype=RECORD, count=row - place)
            num_bytes = len(plan.header(plan.shape[0])) + int(records["bytes"].sum())
            return _State(row, num_bytes, state.problems[:place])
    return state
