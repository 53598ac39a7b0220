"""Where the rows of a text file end: lines of JSON Lines, records of CSV, both of bounded size.

A line ends with a line feed, the last one also with the file. Lines of white space alone are no
rows. A CSV record is a line, or several where a quoted cell holds line feeds. A line or record that
is longer than the limit is passed over in pieces: it is a row with a problem.
"""

import csv
from collections.abc import Callable, Iterator
from typing import IO

MAX_LINE_BYTES = 100_000_000
PIECE_BYTES = 1_000_000
BOM = b"\xef\xbb\xbf"
QUOTE = b'"'

csv.field_size_limit(MAX_LINE_BYTES)

Line = bytes | None  # None: too long
Seen = Callable[[bytes], None]


def unseen(_piece: bytes) -> None:
    """Take a piece of the file without doing anything with it."""


def lines_of(file: IO[bytes], max_bytes: int, seen: Seen = unseen) -> Iterator[tuple[int, Line]]:
    """Yield the rows of a file of lines from its position on, each with the offset behind it;
    `seen` gets all bytes."""
    for end, line in _all_lines(file, max_bytes, seen):
        if line is None or line.strip():
            yield end, line


def records_of(
    file: IO[bytes], max_bytes: int, seen: Seen = unseen, *, delimiter: str = ","
) -> Iterator[tuple[int, Line]]:
    """Yield the records of a CSV file as `lines_of`; they are not parsed unless they have quotes.

    A record with a quote that is not closed within the limit ends with the line that passes it.
    """
    lines = _all_lines(file, max_bytes, seen)
    for end, line in lines:
        if line is None or QUOTE not in line:
            if line is None or line.strip():
                yield end, line
            continue
        record = _Record(end, line, lines, max_bytes)
        try:
            next(csv.reader(record, delimiter=delimiter))
        except (_TooLong, csv.Error) as exc:
            whole = None if isinstance(exc, _TooLong) else record.whole
        else:
            whole = record.whole
        yield record.end, whole


class _TooLong(Exception):
    """A record that has more bytes than the limit."""


class _Record:
    """The lines of one record, as text for the csv module: its delimiters are ASCII."""

    def __init__(
        self, end: int, first: bytes, lines: Iterator[tuple[int, Line]], max_bytes: int
    ) -> None:
        self.end, self._parts = end, [first]
        self._lines, self._left = lines, max_bytes - len(first)

    @property
    def whole(self) -> bytes:
        return b"".join(self._parts)

    def __iter__(self) -> Iterator[str]:
        yield self._parts[0].decode("latin-1")
        for end, line in self._lines:
            self.end = end
            self._left -= len(line or b"")
            if line is None or self._left < 0:
                raise _TooLong
            self._parts.append(line)
            yield line.decode("latin-1")


def _all_lines(file: IO[bytes], max_bytes: int, seen: Seen) -> Iterator[tuple[int, Line]]:
    end = file.tell()
    while line := file.readline(max_bytes + 1):
        seen(line)
        end += len(line)
        whole = len(line) <= max_bytes or line.endswith(b"\n")
        piece = line
        while not whole and not piece.endswith(b"\n") and (piece := file.readline(PIECE_BYTES)):
            seen(piece)
            end += len(piece)
        if not whole:
            yield end, None
        else:
            yield end, line.removeprefix(BOM) if end == len(line) else line
