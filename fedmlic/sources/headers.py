"""What image files say of themselves before their pixels, read by several threads."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic.images import Header, read_header

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 64
"""Headers that one task reads."""


class Headers(NamedTuple):
    """The headers of many files.

    Attributes:
        sizes: float64 ``[images, 2]``, width and height in stored pixels; 0 of unreadable files.
        orientations: int64 ``[images]``, EXIF's code for how to turn the picture; 1 is not at all.
        several_frames: number of files with more than one frame.
        report: counts of modes, of files whose EXIF asks for turning, and Pillow's version.
    """

    sizes: NDArray[np.float64]
    orientations: NDArray[np.int64]
    several_frames: int
    report: dict[str, object]


def read_headers(files: Sequence[Path], workers: int = 8) -> Headers:
    """Read headers of image files; unreadable ones are counted here and fail by name when decoded.

    Args:
        files: image files.
        workers: threads; waiting for a disk takes longer than reading a header.
    """
    import PIL  # only a build looks at files

    modes: Counter[str] = Counter()
    sizes = np.zeros((len(files), 2))
    orientations = np.ones(len(files), dtype=np.int64)
    several = 0
    with ThreadPoolExecutor(workers) as pool:
        batches = pool.map(_headers, [files[start : start + BATCH] for start in range(0, len(files), BATCH)])
        for place, header in enumerate(itertools.chain.from_iterable(batches)):
            modes["unreadable" if header is None else header.mode] += 1
            if header is not None:
                sizes[place] = header.width, header.height
                orientations[place] = header.orientation
                several += header.frames > 1
    turned = int((orientations != 1).sum())
    report = {"modes": dict(sorted(modes.items())), "exif_turned": turned, "pillow": PIL.__version__}
    return Headers(sizes, orientations, several, report)


def _headers(files: Sequence[Path]) -> list[Header | None]:
    return [read_header(file) for file in files]
