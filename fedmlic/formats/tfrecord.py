"""TFRecord files of ``tf.train.Example`` messages, read without TensorFlow.

A file is a sequence of records: the length as 8 bytes, a checksum of these, the message, a
checksum of the message. The length's checksum is compared; the message's is not, because
that would read all pixels. Bytes of long features are never copied: their places are given.

Source: tensorflow.org/tutorials/load_data/tfrecord and protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fedmlic.errors import InputError

POLYNOMIAL = 0x82F63B78
"""CRC-32C (Castagnoli), bits reversed."""


class Span(NamedTuple):
    """Bytes of a file: where they start, and how many."""

    start: int
    length: int


class Example(NamedTuple):
    """One message: its byte features (the first value of each) and its integer features."""

    spans: dict[str, Span]
    integers: dict[str, list[int]]


def read_examples(path: Path) -> list[Example]:
    """The examples of a TFRecord file, in order.

    Raises:
        InputError: it is damaged, with the number of the first bad record.
    """
    if path.stat().st_size == 0:
        return []
    found: list[Example] = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            found.extend(_example(content, span) for span in _records(content))
        except (ValueError, IndexError, struct.error) as error:
            msg = f"Expected {path} to be a TFRecord file, got: record {len(found)}: {error}. Make it again."
            raise InputError(msg) from error
    return found


def _records(content: mmap.mmap) -> Iterator[Span]:
    place, size = 0, len(content)
    while place < size:
        header = content[place : place + 12]
        if len(header) < 12:
            raise ValueError("it ends inside a header")
        length, checksum = struct.unpack("<QI", header)
        if _masked_crc(header[:8]) != checksum:
            raise ValueError("its length has a wrong checksum")
        if place + 16 + length > size:
            raise ValueError("it ends inside a message")
        yield Span(place + 12, length)
        place += 16 + length


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        crc = value
        for _ in range(8):
            crc = (crc >> 1) ^ (POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _crc_table()


def _masked_crc(data: bytes) -> int:
    """TFRecord's checksum: CRC-32C, rotated by 15 bits and shifted by a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
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
