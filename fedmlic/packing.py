"""Numbers in fewer bytes, without loss, for the links of real devices.

A client's sums are float64, so that adding them is exact, but they hold less than that: tensors in float32 times a
count. A change that mods shortened is float32, and holds few different values (``int8()``) or mostly zeros
(``top_k(...)``). DEFLATE (RFC 1951, zlib's fastest level) finds zeros as they are. Before it, bytes of equal place are
put beside each other (the shuffle of HDF5 and Blosc), which leaves empty low bytes in one piece; or numbers are
replaced by their places in a table of all values that occur. Which form to use a sample decides.

Unpacking is bounded: the reader knows how many bytes there must be, and not one more is ever made.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RAW: Final = "fedmlic.raw"
"""The numbers and nothing else, little-endian, in C order."""

DEFLATED: Final = "fedmlic.deflated"
"""The same, deflated."""

SHUFFLED: Final = "fedmlic.shuffled"
"""First the first byte of every number, then every second byte, and so on; deflated."""

LISTED: Final = "fedmlic.listed"
"""For every ``PIECE``: how many different numbers there are (4 bytes), these in ascending order of their bits, and for
each number its place among them (2 bytes, shuffled). More than a quarter of the numbers are not listed: 0 (4 bytes) and
the numbers, shuffled. All of it deflated."""

PIECE: Final = 1 << 16
"""Numbers that share a list, of which two bytes tell a quarter apart. All numbers of a network together, a scale of
their own for every tensor, would have too many values."""

SAMPLE: Final = 1 << 15
"""Numbers that are tried before all are packed."""

WORTH: Final = 0.9
"""Share of the bytes that must remain at most, or the numbers are sent as they are."""

LEVEL: Final = 1


def pack(numbers: NDArray[Any]) -> tuple[str, bytes]:
    """The numbers in the shortest of four forms.

    Args:
        numbers: contiguous, little-endian, any shape.

    Returns:
        The form's name and its bytes.
    """
    values = numbers.reshape(-1)
    start = max(0, len(values) - SAMPLE) // 2
    sample = values[start : start + SAMPLE]
    packed = {form: _packed(form, sample) for form in (DEFLATED, SHUFFLED, LISTED)}
    sizes = {form: len(data) for form, data in packed.items() if data is not None}
    for form in sorted(sizes, key=lambda each: sizes[each]):
        data = _packed(form, values) if sizes[form] <= WORTH * sample.nbytes else None
        if data is not None and len(data) < numbers.nbytes:
            return form, data
    return RAW, numbers.tobytes()


def _packed(form: str, values: NDArray[Any]) -> bytes | None:
    if form == DEFLATED:
        return zlib.compress(_bytes(values).data, LEVEL)
    if form == SHUFFLED:
        return zlib.compress(_shuffled(values).data, LEVEL)
    bits = values.view(f"<u{values.itemsize}")
    writer, found, lists = zlib.compressobj(LEVEL), [], False
    for start in range(0, len(bits), PIECE):
        piece = bits[start : start + PIECE]
        listed = np.unique(piece)
        if len(listed) > len(piece) // 4:
            listed, numbers = listed[:0], _shuffled(piece)
        else:
            lists, numbers = True, _shuffled(np.searchsorted(listed, piece).astype("<u2"))
        found += [writer.compress(each) for each in (len(listed).to_bytes(4, "little"), listed.tobytes(), numbers.data)]
    return b"".join((*found, writer.flush())) if lists else None


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return values.view(np.uint8).reshape(-1, values.itemsize)


def _shuffled(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(_bytes(values).T)


def _unshuffled(data: bytes | memoryview, itemsize: int) -> bytes:
    return np.frombuffer(data, np.uint8).reshape(itemsize, -1).T.tobytes()


def unpack(form: str, packed: bytes, count: int, itemsize: int) -> bytes | None:
    """The bytes of ``count`` numbers of ``itemsize`` bytes each.

    Returns:
        ``None`` where the form is not known or does not hold exactly these many bytes.
    """
    want = count * itemsize
    if form == RAW:
        return packed if len(packed) == want else None
    if form == LISTED:
        return _from_lists(_inflated(packed, 4 * -(-count // PIECE) + want), count, itemsize)
    found = _inflated(packed, want) if form in (DEFLATED, SHUFFLED) else None
    if found is None or len(found) != want:
        return None
    return found if form == DEFLATED else _unshuffled(found, itemsize)


def _from_lists(found: bytes | None, count: int, itemsize: int) -> bytes | None:
    numbers, rest = bytearray(), memoryview(found or b"")
    for start in range(0, count, PIECE):
        size = min(PIECE, count - start)
        num_listed = int.from_bytes(rest[:4], "little")
        begin = 4 + num_listed * itemsize
        end = begin + size * (2 if num_listed else itemsize)
        if num_listed > size // 4 or len(rest) < end:
            return None
        if num_listed:
            places = np.frombuffer(_unshuffled(rest[begin:end], 2), "<u2")
            if int(places.max()) >= num_listed:
                return None
            listed: NDArray[Any] = np.frombuffer(rest[4:begin], f"<u{itemsize}")
            numbers += listed[places].data
        else:
            numbers += _unshuffled(rest[begin:end], itemsize)
        rest = rest[end:]
    return None if found is None or len(rest) else bytes(numbers)


def _inflated(packed: bytes, most: int) -> bytes | None:
    """What was deflated, all of it and nothing behind it, or ``None``; never more than ``most`` bytes."""
    reader = zlib.decompressobj()
    try:
        found = reader.decompress(packed, most + 1)
    except zlib.error:
        return None
    return found if reader.eof and not reader.unused_data and len(found) <= most else None
