"""Events without a schema, in as few bytes as they need: the body of events/2.

Sender and receiver know the columns from the task, and the header `e2` names them by a digest. So
the body has values alone, little endian:

    epoch      text
    first      number: the seq of the first row; row i has the seq first + i
    count      number of rows, at least 1
    models     number of names; the names, texts, in the order of their first row; with more than
               one name its index for each row: u8 up to 256 names, else u32
    times      u8 width; i64 the first time; count - 1 differences, signed, of `width` bytes
    labels     (count + 7) // 8 bytes, bit i: whether row i has one; float32 for each row that has
    outputs    count x outputs float32
    segments   zeros up to a multiple of ALIGN bytes from the body's start, count x size float32 or
               float16; nothing if the task uploads predictions only

    number     unsigned LEB128: 7 bits a byte, lowest first, bit 7 set in all bytes but the last
    text       u8 length n, n bytes of ASCII; or u8 128 + n, n bytes of a big-endian number: a 1,
               then a digit of base 17 for each character, its place in "0123456789abcdef-"

Names of epochs and of model versions have those characters only, and take half the bytes as
numbers. A body that ends early, or goes on, is refused before its rows are allocated.
"""

import math
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from streams.contract.errors import MalformedRecord
from streams.contract.events.batches import TIMESTAMP, float_rows, times_us

PACKED, MOST = 128, 127  # the bit of a packed text; the most bytes of one
ALPHABET = "0123456789abcdef-"
ALIGN = 8  # so that segments, most of a body, are read without a copy
DIGEST = 6  # characters of base64: 36 bits
MOST_DIGITS = 9  # of a number: 63 bits
WIDTHS = (1, 2, 4, 8)
NAMES = ["seq", "time", "model", "outputs", "label", "segment"]


@dataclass(frozen=True)
class Layout:
    """How many values an answer, a label and a segment have, and the type of a segment's: float32
    or float16; "" if the task uploads predictions only."""

    outputs: int
    label: int
    segment: int
    dtype: str

    @property
    def digest(self) -> str:
        """The layout's name in the header `e2`."""
        return _digest(self)


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


@lru_cache(maxsize=64)
def schema_of(layout: Layout) -> pa.Schema:
    """Return the columns of an event; see records.py:event_schema."""
    segment = _floats(layout.segment, layout.dtype) if layout.segment else pa.null()
    return pa.schema(
        [
            pa.field("seq", pa.int64(), nullable=False),
            pa.field("time", TIMESTAMP, nullable=False),
            pa.field("model", pa.string(), nullable=False),
            pa.field("outputs", _floats(layout.outputs), nullable=False),
            pa.field("label", _floats(layout.label)),
            pa.field("segment", segment),
        ]
    )


@lru_cache(maxsize=64)
def layout_of(schema: pa.Schema) -> Layout | None:
    """Return the layout whose `schema_of` this is; None if there is none."""
    if schema.names != NAMES:
        return None
    outputs, label, segment = (schema.field(name).type for name in NAMES[3:])
    sizes = [int(getattr(kind, "list_size", 0)) for kind in (outputs, label, segment)]
    half = sizes[2] and segment.value_type == pa.float16()
    dtype = ("float16" if half else "float32") if sizes[2] else ""
    layout = Layout(sizes[0], sizes[1], sizes[2], dtype)
    return layout if schema_of(layout).equals(schema) else None


def _floats(size: int, dtype: str = "float32") -> pa.DataType:
    return pa.list_(pa.from_numpy_dtype(dtype), size)


@lru_cache(maxsize=64)
def _digest(layout: Layout) -> str:
    text = f"{layout.outputs} {layout.label} {layout.segment} {layout.dtype}"
    return urlsafe_b64encode(sha256(text.encode()).digest())[:DIGEST].decode()


def batch_of(layout: Layout, columns: Columns) -> pa.RecordBatch:
    """Return columns as rows, without Arrow's compute functions, which cost a device 9 MB."""
    schema = schema_of(layout)
    first, times, models, outputs, labels, known, segments = columns
    n = len(times)
    bits = pa.py_buffer(np.packbits(known, bitorder="little"))
    kind = schema.field("label").type
    arrays = [
        pa.array(np.arange(first, first + n)),
        pa.array(times, type=pa.int64()).view(TIMESTAMP),
        pa.repeat(pa.scalar(models, pa.string()), n)
        if isinstance(models, str)
        else pa.array(models, pa.string()),
        pa.FixedSizeListArray.from_arrays(
            pa.array(outputs.reshape(-1)), type=schema.field("outputs").type
        ),
        pa.Array.from_buffers(kind, n, [bits], children=[pa.array(labels.reshape(-1))]),
        pa.nulls(n, schema.field("segment").type)
        if segments is None
        else pa.FixedSizeListArray.from_arrays(
            pa.array(segments.reshape(-1)), type=schema.field("segment").type
        ),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def encode_rows(epoch: str, first: int, rows: pa.RecordBatch) -> bytes | None:
    """Return rows of an `event_schema` as a body; None where they have what it cannot carry: no
    rows, nulls but in `label`, other seqs than first, first + 1, ..., a name that is long or not
    ASCII."""
    layout, count = layout_of(rows.schema), rows.num_rows
    if layout is None or not count:
        return None
    whole = rows.columns[:4] + (rows.columns[5:] if layout.segment else [])
    if any(column.null_count for column in whole):
        return None
    models = names_of(rows.column("model"))
    names = list(dict.fromkeys(models))
    if not np.array_equal(rows.column("seq").to_numpy(), np.arange(first, first + count)):
        return None
    if any(len(name) > MOST or not name.isascii() for name in {epoch, *names}):
        return None
    known = _valid(rows.column("label"))
    parts = [
        *(_text(epoch), _number(first), _number(count)),
        _models(names, models),
        _times(times_us(rows.column("time"))),
        np.packbits(known, bitorder="little"),
        float_rows(rows.column("label"), layout.label)[known],
        float_rows(rows.column("outputs"), layout.outputs),
    ]
    body = b"".join(part if isinstance(part, bytes) else part.tobytes() for part in parts)
    if not layout.segment:
        return body
    segments = float_rows(rows.column("segment"), layout.segment)
    return b"".join([body, bytes(-len(body) % ALIGN), np.ascontiguousarray(segments).data])


def decode_rows(layout: Layout, data: bytes, most: int) -> tuple[str, Columns]:
    """Return the epoch and the columns of a body of at most `most` rows. Their form is checked, not
    their values; MalformedRecord says what is wrong."""
    body = _Body(data)
    epoch, first, count = body.text(), body.number(), body.number()
    if not 0 < count <= most:
        raise MalformedRecord("huge-batch", f"{count} rows, from 1 to {most} are allowed")
    models, times = body.models(count), body.times(count)
    bits = np.unpackbits(body.array("u1", (count + 7) // 8), bitorder="little")
    known = bits[:count].astype(bool)
    told = body.array("<f4", int(known.sum()), layout.label)
    outputs = body.array("<f4", count, layout.outputs)
    segments = body.aligned(layout.dtype, count, layout.segment) if layout.segment else None
    body.end()
    labels = np.zeros((count, layout.label), np.float32)
    labels[known] = told
    return epoch, Columns(first, times, models, outputs, labels, known, segments)


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


def _models(names: list[str], models: list[str]) -> bytes:
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


def names_of(column: pa.Array) -> list[str]:
    """Return a column of strings without nulls; fast where all are the same, as a device's are."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    text = bytes(data[int(ends[0]) : int(ends[-1])]) if data is not None else b""
    size = int(ends[1] - ends[0])
    if (np.diff(ends) == size).all() and text == text[:size] * len(column):
        return [text[:size].decode()] * len(column)
    return list(column.to_pylist())


def _valid(column: pa.Array) -> np.ndarray:
    """Return (rows,) bool: which rows are not null."""
    bits = column.buffers()[0]
    if bits is None:
        return np.ones(len(column), bool)
    found = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
    return found[column.offset : column.offset + len(column)].astype(bool)


class _Body:
    """Reads a body from its beginning to its end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

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

    def end(self) -> None:
        left = len(self._data) - self._at
        if left:
            raise MalformedRecord("bad-body", f"{left} bytes follow the rows")
