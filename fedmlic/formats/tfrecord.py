"""TFRecord files of ``tf.train.Example`` messages, read without TensorFlow.

A file is a sequence of records: the length as 8 bytes, a checksum of these, the message, a
checksum of the message. Both checksums are compared. Bytes of long features are not kept: their
places are given.

Source: tensorflow.org/tutorials/load_data/tfrecord and protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic.problems import Problems

if TYPE_CHECKING:
    from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78
"""CRC-32C (Castagnoli), bits reversed."""

BLOCK = 256
"""Bytes whose checksums are taken at once."""

BLOCKS = 4096
"""Blocks that are in memory at once."""


class Span(NamedTuple):
    """Bytes of a file: where they start, and how many."""

    start: int
    length: int


class Example(NamedTuple):
    """One message: its byte features (the first value of each) and its integer features."""

    spans: dict[str, Span]
    integers: dict[str, list[int]]


def read_examples(path: Path, problems: Problems) -> dict[int, Example]:
    """The examples of a TFRecord file by their places in it.

    Args:
        path: the file.
        problems: takes what is wrong with it. After a message that cannot be read, those
            behind it are read; after a length that is wrong, nothing is.
    """
    found: dict[int, Example] = {}
    own = problems.within(f"Expected {path} to be a TFRecord file")
    try:
        if path.stat().st_size == 0:
            return found
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _read(content, found, own)
    except OSError as error:
        own.add(str(error))
    return found


def _read(content: mmap.mmap, found: dict[int, Example], problems: Problems) -> None:
    place, size, number = 0, len(content), 0
    while place < size:
        header = content[place : place + 12]
        length, checksum = struct.unpack("<QI", header) if len(header) == 12 else (0, -1)
        wrong = "its length has a wrong checksum" if masked_crc(header[:8]) != checksum else ""
        wrong = "it ends inside a header" if len(header) < 12 else wrong
        if wrong or place + 16 + length > size:
            problems.add(f"record {number}: {wrong or 'it ends inside a message'}")
            return
        end = place + 16 + length
        try:
            if masked_crc(content[place + 12 : end - 4]) != struct.unpack("<I", content[end - 4 : end])[0]:
                raise ValueError("its message has a wrong checksum")  # noqa: TRY301  (as other damage of a message)
            found[number] = _example(content, Span(place + 12, length))
        except (ValueError, IndexError) as error:
            problems.add(f"record {number}: {error}")
        place, number = end, number + 1


def _next_byte(crc: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Checksums after one more byte of 0."""
    for _ in range(8):
        crc = np.asarray((crc >> 1) ^ (crc & 1) * np.uint32(POLYNOMIAL), dtype=np.uint32)
    return crc


def _tables() -> NDArray[np.uint32]:
    """uint32 ``[BLOCK, 256]``: what a byte of some value at some place of a block adds to the block's checksum."""
    tables = np.empty((BLOCK, 256), dtype=np.uint32)
    tables[-1] = _next_byte(np.arange(256, dtype=np.uint32))
    for place in range(BLOCK - 2, -1, -1):
        tables[place] = _next_byte(tables[place + 1])
    return tables


_TABLES = _tables()
_FIRST = _TABLES[:4].tolist()
_LAST = _TABLES[-1].tolist()
_OFFSETS = np.arange(BLOCK) * 256


def masked_crc(data: bytes) -> int:
    """TFRecord's checksum: CRC-32C, rotated by 15 bits and shifted by a constant.

    The checksum is linear: that of a block is the exclusive or of what each of its bytes adds,
    which NumPy looks up for many blocks at once; what came before adds to the first four bytes.

    >>> hex(masked_crc(b"123456789"))  # the CRC-32C of these is 0xe3069283
    '0xc78ab0e5'
    """
    crc, head = 0xFFFFFFFF, len(data) % BLOCK
    for byte in data[:head]:
        crc = _LAST[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    blocks = np.frombuffer(data[head:], dtype=np.uint8).reshape(-1, BLOCK)
    first, second, third, fourth = _FIRST
    for start in range(0, len(blocks), BLOCKS):
        own = np.bitwise_xor.reduce(_TABLES.take(blocks[start : start + BLOCKS] + _OFFSETS), axis=1)
        for block in own.tolist():
            before = first[crc & 0xFF] ^ second[crc >> 8 & 0xFF] ^ third[crc >> 16 & 0xFF] ^ fourth[crc >> 24]
            crc = before ^ block
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(content: mmap.mmap, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def _fields(content: mmap.mmap, span: Span) -> Iterator[tuple[int, Span | int]]:
    """Numbers of a message's fields with their bytes or integer."""
    place, end = span.start, span.start + span.length
    while place < end:
        key, place = _varint(content, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(content, place)
            yield key >> 3, value
        elif kind in {1, 5}:
            length = 8 if kind == 1 else 4
            yield key >> 3, Span(place, length)
            place += length
        elif kind == 2:
            length, place = _varint(content, place)
            yield key >> 3, Span(place, length)
            place += length
        else:
            msg = f"a field has the unknown wire type {kind}"
            raise ValueError(msg)
    if place != end:
        raise ValueError("a field ends outside of its message")


def _example(content: mmap.mmap, span: Span) -> Example:
    """``Example.features`` is field 1; ``Features.feature`` is a map: entries of key 1 and value 2."""
    example = Example({}, {})
    for features in _spans(content, span, 1):
        for entry in _spans(content, features, 1):
            parts = dict(_fields(content, entry))
            key, value = parts.get(1), parts.get(2, Span(entry.start, 0))
            if isinstance(key, Span) and isinstance(value, Span):
                _feature(content, content[key.start : key.start + key.length].decode(), value, example)
    return example


def _spans(content: mmap.mmap, span: Span, number: int) -> list[Span]:
    return [value for field, value in _fields(content, span) if field == number and isinstance(value, Span)]


def _feature(content: mmap.mmap, name: str, span: Span, example: Example) -> None:
    """``bytes_list`` is field 1, ``int64_list`` field 3; their values are field 1, packed or one by one."""
    for field, values in _fields(content, span):
        if not isinstance(values, Span):
            continue
        if field == 1:
            first = _spans(content, values, 1)
            if first:
                example.spans[name] = first[0]
        elif field == 3:
            example.integers.setdefault(name, []).extend(_integers(content, values))


def _integers(content: mmap.mmap, span: Span) -> list[int]:
    numbers: list[int] = []
    for field, value in _fields(content, span):
        if field != 1:
            continue
        if isinstance(value, int):
            numbers.append(value)
            continue
        place = value.start
        while place < value.start + value.length:
            number, place = _varint(content, place)
            numbers.append(number)
    return numbers
