"""VOC's class files: for one label, every image of a list with 1 (present), -1 (absent) or 0 (difficult only)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedmlic.formats.reading import read_lines

if TYPE_CHECKING:
    from pathlib import Path

PRESENT, ABSENT, DIFFICULT = 1, -1, 0


def read_class_file(path: Path) -> dict[str, str]:
    """What the file says of each image, as it is written; blank for a line of one word.

    The two columns are separated by one space or by two.

    Raises:
        InputError: it is no text.
    """
    words = [line.split() for _, line in read_lines(path)]
    return {line[0]: line[-1] if len(line) > 1 else "" for line in words}
