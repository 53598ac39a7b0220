"""Events without a schema, in as few bytes as they need: blocks of rows, and the body of events/2.

Sender and receiver know the columns from the task, and the header `e2` names them by a digest. So
a block has values alone, little endian:

    count      number of rows, at least 1
    models     number of names; the names, texts, in the order of their first row; with more than
               one name its index for each row: u8 up to 256 names, else u32
    times      u8 width; i64 the first time; count - 1 differences, signed, of `width` bytes
    labels     (count + 7) // 8 bytes, bit i: whether row i has one; float32 for each row that has
    outputs    count x outputs float32
    segments   zeros up to a multiple of ALIGN bytes from the block's start, count x size
               float32; nothing if the task uploads predictions only

    number     unsigned LEB128: 7 bits a byte, lowest first, bit 7 set in all bytes but the last
    text       u8 length n, n bytes of ASCII; or u8 128 + n, n bytes of a big-endian number: a 1,
               then a digit of base 17 for each character, its place in "0123456789abcdef-"

A frame of the spool has a block. The body of a message is a block and a tail, so that the block of
a frame is sent as it is:

    first      number: the seq of the first row; row i has the seq first + i
    epoch      text

Names of epochs and of model versions have those characters only, and take half the bytes as
numbers. A body that ends early, or goes on, is refused before its rows are allocated.

The teacher's outputs for a device are runs of consecutive events, one after another: `epoch`
(text), `first` and `count` (numbers), count x outputs float32; see records.py, header `taught`.
"""

import math
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np

from streams.contract.errors import MalformedRecord

PACKED, MOST = 128, 127  # the bit of a packed text; the most bytes of one
ALPHABET = "0123456789abcdef-"
ALIGN = 8  # so that segments, most of a body, are read without a copy
DIGEST = 6  # characters of base64: 36 bits
MOST_DIGITS = 9  # of a number: 63 bits
WIDTHS = (1, 2, 4, 8)
UNANSWERED = ""  # the model of events that the worker answers


@dataclass(frozen=True)
class Layout:
    """How many values an answer, a label and a segment have; a segment has none if the task uploads
    predictions only."""

    outputs: int
    label: int
    segment: int

    @property
    def text(self) -> str:
        return f"{self.outputs}-{self.label}-{self.segment}"

    @property
    def digest(self) -> str:
        """The layout's name in the header `e2`."""
        return digest_of(self.text)

    @classmethod
    def of(cls, text: str) -> "Layout":
        """Return the layout with this text; raise ValueError if there is none."""
        outputs, label, segment = text.split("-")
        return cls(int(outputs), int(label), int(segment))


@lru_cache(maxsize=64)
def digest_of(text: str) -> str:
    return urlsafe_b64encode(sha256(text.encode()).digest())[:DIGEST].decode()


class Columns(NamedTuple):
    """Consecutive events; row i has the seq first + i.

    times (n,) int64 us; models: one for all rows, or one each; outputs (n, outputs); labels
    (n, label_size), of which those count whose `known` (n,) is true; segments (n, size), None if
    the task uploads predictions only.
    """

    first: int
    times: np.ndarray
    models: str | Sequence[str]
    outputs: np.ndarray
    labels: np.ndarray
    known: np.ndarray
    segments: np.ndarray | None

    def part(self, begin: int, end: int) -> "Columns":
        """Return the rows from `begin` to before `end`, which share the memory."""
        kept: list[Any] = [
            each if each is None or isinstance(each, str) else each[begin:end] for each in self[1:]
        ]
        return Columns(self.first + begin, *kept)

    @property
    def names(self) -> Sequence[str]:
        """The model of each row."""
        return [self.models] * len(self.times) if isinstance(self.models, str) else self.models


def joined(parts: Sequence[Columns]) -> Columns:
    """Return consecutive events as one."""
    if len(parts) == 1:
        return parts[0]
    names = [name for part in parts for name in part.names]
    segments = [part.segments for part in parts if part.segments is not None]
    return Columns(
        parts[0].first,
        np.concatenate([part.times for part in parts]),
        names[0] if len(set(names)) == 1 else names,
        np.concatenate([part.outputs for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.known for part in parts]),
        np.concatenate(segments) if segments else None,
    )


def encode_block(columns: Columns, rows: Sequence[np.ndarray] | None = None) -> bytes:
    """Return events as a block; their names are ASCII of at most MOST characters. `rows` are the
    segments one by one, where `columns` has none: so they are copied once."""
    _, times, models, outputs, labels, known, segments = columns
    parts = [
        _number(len(times)),
        _models(models),
        _times(times),
        np.packbits(known, bitorder="little").tobytes(),
        labels[known].tobytes(),
        outputs.tobytes(),
    ]
    rows = [segments] if segments is not None else rows
    if rows is None:
        return b"".join(parts)
    padding = bytes(-sum(map(len, parts)) % ALIGN)
    copied = (np.ascontiguousarray(row, np.float32).data for row in rows)
    return b"".join([*parts, padding, *copied])


def decode_block(layout: Layout, data: bytes, first: int, most: int) -> Columns:
    """Return the events of a block, of which the first one has the seq `first`; see
    `decode_rows`."""
    body = _Body(data)
    columns = body.columns(layout, first, most)
    body.end()
    return columns


def encode_rows(epoch: str, first: int, block: bytes) -> bytes:
    """Return a block as the body of a message."""
    return b"".join((block, _number(first), _text(epoch)))


def decode_rows(layout: Layout, data: bytes, most: int) -> tuple[str, Columns]:
    """Return the epoch and the columns of a body of at most `most` rows. Their form is checked, not
    their values; MalformedRecord says what is wrong."""
    body = _Body(data)
    columns = body.columns(layout, 0, most)
    first, epoch = body.number(), body.text()
    body.end()
    return epoch, columns._replace(first=first)


def encode_taught(epoch: str, first: int, outputs: np.ndarray) -> bytes:
    """Return the teacher's outputs (n, outputs) float32 for a run of events."""
    return b"".join((_text(epoch), _number(first), _number(len(outputs)), outputs.tobytes()))


def decode_taught(outputs: int, data: bytes, most: int) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield epoch, first seq and outputs (n, outputs) of each run; MalformedRecord as above."""
    body = _Body(data)
    while body.left:
        epoch, first, count = body.text(), body.number(), body.number()
        body.check(count, most)
        yield epoch, first, body.array("<f4", count, outputs)


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


@lru_cache(maxsize=64)
def _text(text: str) -> bytes:
    if not set(text) <= set(ALPHABET):
        return bytes([len(text)]) + text.encode("ascii")
    value = 1
    for character in text:
        value = value * len(ALPHABET) + ALPHABET.index(character)
    size = (value.bit_length() + 7) // 8
    return bytes([PACKED | size]) + value.to_bytes(size, "big")


def _models(models: str | Sequence[str]) -> bytes:
    names = [models] if isinstance(models, str) else list(dict.fromkeys(models))
    texts = _number(len(names)) + b"".join(map(_text, names))
    if len(names) == 1:
        return texts
    places = {name: place for place, name in enumerate(names)}
    return texts + np.array([places[name] for name in models], _index(len(names))).tobytes()


def _index(names: int) -> str:
    return "u1" if names <= 256 else "<u4"


def _times(times: np.ndarray) -> bytes:
    steps = np.diff(times)
    width = next(each for each in WIDTHS if (steps.astype(f"<i{each}") == steps).all())
    return bytes([width]) + times[:1].tobytes() + steps.astype(f"<i{width}").tobytes()


class _Body:
    """Reads a body from its beginning to its end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def columns(self, layout: Layout, first: int, most: int) -> Columns:
        """Take a block of at most `most` rows."""
        count = self.number()
        self.check(count, most)
        models, times = self.models(count), self.times(count)
        bits = np.unpackbits(self.array("u1", (count + 7) // 8), bitorder="little")
        known = bits[:count].astype(bool)
        told = self.array("<f4", int(known.sum()), layout.label)
        outputs = self.array("<f4", count, layout.outputs)
        segments = self.aligned("<f4", count, layout.segment) if layout.segment else None
        labels = np.zeros((count, layout.label), np.float32)
        labels[known] = told
        return Columns(first, times, models, outputs, labels, known, segments)

    def check(self, count: int, most: int) -> None:
        if not 0 < count <= most:
            raise MalformedRecord("huge-batch", f"{count} rows, from 1 to {most} are allowed")

    def take(self, size: int) -> bytes:
        begin = self._skip(size)
        return self._data[begin : self._at]

    def _skip(self, size: int) -> int:
        begin, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise MalformedRecord("bad-body", f"the value ends early: {len(self._data)} bytes")
        return begin

    def number(self) -> int:
        value = 0
        for place in range(MOST_DIGITS):
            byte = self.take(1)[0]
            value |= (byte & 127) << 7 * place
            if byte < 128:
                return value
        raise MalformedRecord("bad-body", f"a number has more than {MOST_DIGITS} bytes")

    def text(self) -> str:
        size = self.take(1)[0]
        data = self.take(size & MOST)
        if not size & PACKED:
            return data.decode("ascii", errors="replace")  # no name, which the caller refuses
        value, characters = int.from_bytes(data, "big"), []
        while value > 1:
            value, digit = divmod(value, len(ALPHABET))
            characters.append(ALPHABET[digit])
        return "".join(reversed(characters))

    def array(self, kind: str, *shape: int) -> np.ndarray:
        dtype = np.dtype(kind)
        return np.frombuffer(self.take(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)

    def aligned(self, kind: str, *shape: int) -> np.ndarray:
        if any(self.take(-self._at % ALIGN)):
            raise MalformedRecord("bad-body", "the bytes before the segments are not zero")
        dtype, count = np.dtype(kind), math.prod(shape)
        begin = self._skip(count * dtype.itemsize)
        return np.frombuffer(self._data, dtype, count, begin).reshape(shape)

    def models(self, count: int) -> str | list[str]:
        distinct = self.number()
        if not 0 < distinct <= count:
            raise MalformedRecord("bad-body", f"{distinct} models for {count} rows")
        names = [self.text() for _ in range(distinct)]
        if distinct == 1:
            return names[0]
        indices = self.array(_index(distinct), count)
        if indices.max() >= distinct:
            raise MalformedRecord("bad-body", f"a row has model {indices.max()} of {distinct}")
        return [names[index] for index in indices.tolist()]

    def times(self, count: int) -> np.ndarray:
        (width,) = self.take(1)
        if width not in WIDTHS:
            raise MalformedRecord("bad-body", f"differences of times have {width} bytes")
        first, steps = self.array("<i8", 1), self.array(f"<i{width}", count - 1)
        return np.cumsum(np.concatenate([first, steps], dtype=np.int64))

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def end(self) -> None:
        if self.left:
            raise MalformedRecord("bad-body", f"{self.left} bytes follow the rows")
