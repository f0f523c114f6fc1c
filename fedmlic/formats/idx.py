"""IDX, the format of MNIST and its relatives: an array of bytes behind a short header, often compressed.

Two zero bytes, a type (8 for unsigned bytes), the number of dimensions, then each dimension as a big-endian
32-bit number, then the values in C order (LeCun, "The MNIST database", file format at the foot of its page).
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedmlic.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNSIGNED_BYTE = 8


def read_idx(path: Path, num_dimensions: int) -> NDArray[np.uint8]:
    """The array in a file, compressed with gzip or not.

    Args:
        path: the file.
        num_dimensions: of the array that it should hold.

    Raises:
        InputError: there is no such file, or it holds something else or too little or too much.
    """
    if not path.is_file():
        msg = f"Expected a file at {path}, got none. Download it, or give the folder that holds it as root."
        raise InputError(msg)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        msg = f"Expected {path} to be compressed with gzip, got: {error}. Download it again."
        raise InputError(msg) from error
    header = np.frombuffer(content[: 4 + 4 * num_dimensions], dtype=np.uint8)
    wanted = [0, 0, UNSIGNED_BYTE, num_dimensions]
    if header[:4].tolist() != wanted or len(header) < 4 + 4 * num_dimensions:
        msg = f"Expected {path} to begin with the bytes {wanted}, got {header[:4].tolist()}. Download it again."
        raise InputError(msg)
    shape = [int(size) for size in np.frombuffer(content, dtype=">u4", count=num_dimensions, offset=4)]
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * num_dimensions)
    if len(values) != math.prod(shape):
        msg = f"Expected {path} to hold {math.prod(shape)} values ({shape}), got {len(values)}. Download it again."
        raise InputError(msg)
    return values.reshape(shape)
