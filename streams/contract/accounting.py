"""Exact counts of events: sets of sequence numbers as intervals, and the sums that must balance.

For one device and epoch: produced = delivered + dropped + pending (the device's side) and
produced = scored + dropped + in flight (the server's side).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


class IntervalSet:
    """A set of integers stored as disjoint, sorted, closed intervals [first, last].

    Sequence numbers arrive almost in order, so the list stays short.
    """

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in intervals:
            self.add(first, last)

    def __contains__(self, value: int) -> bool:
        i = bisect_right(self._firsts, value) - 1
        return i >= 0 and value <= self._lasts[i]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._firsts, self._lasts, strict=True)))

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def add(self, first: int, last: int | None = None) -> int:
        """Add first..last (only `first` without `last`) and return how many numbers were new."""
        last = first if last is None else last
        if first < 0 or last < first:
            raise ValueError(f"not an interval of sequence numbers: [{first}, {last}]")
        # i: the first interval that touches first..last, j: the last one plus 1
        i = bisect_left(self._lasts, first - 1)
        j = bisect_right(self._firsts, last + 1)
        before = sum(self._lasts[k] - self._firsts[k] + 1 for k in range(i, j))
        if i < j:
            first, last = min(first, self._firsts[i]), max(last, self._lasts[j - 1])
        self._firsts[i:j] = [first]
        self._lasts[i:j] = [last]
        return last - first + 1 - before

    def remove(self, first: int, last: int) -> None:
        """Remove first..last; numbers that are not in the set are ignored."""
        i, j = bisect_left(self._lasts, first), bisect_right(self._firsts, last)
        if i < j:
            ends = [(self._firsts[i], first - 1), (last + 1, self._lasts[j - 1])]
            kept = [(low, high) for low, high in ends if low <= high]
            self._firsts[i:j] = [low for low, _ in kept]
            self._lasts[i:j] = [high for _, high in kept]

    def within(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the intervals of the members from first to last."""
        i, j = bisect_left(self._lasts, first), bisect_right(self._firsts, last)
        found = zip(self._firsts[i:j], self._lasts[i:j], strict=True)
        return [(max(low, first), min(high, last)) for low, high in found]

    def missing(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the intervals of the numbers from first to last that are not members."""
        found, begin = [], first
        for low, high in self.within(first, last):
            if begin < low:
                found.append((begin, low - 1))
            begin = high + 1
        return [*found, (begin, last)] if begin <= last else found

    def minus(self, *others: "IntervalSet") -> "IntervalSet":
        """Return the members that are in none of `others`."""
        left = IntervalSet(self)
        for other in others:
            for first, last in self:
                for interval in other.within(first, last):
                    left.remove(*interval)
        return left


@dataclass(frozen=True)
class DeviceAccount:
    """A device's event counts for one epoch of its spool."""

    produced: int
    delivered: int
    dropped: dict[str, int] = field(default_factory=dict)
    pending: int = 0

    @property
    def balanced(self) -> bool:
        return self.produced == self.delivered + sum(self.dropped.values()) + self.pending


@dataclass(frozen=True)
class LabelDelay:
    """Of the events of the seven days up to the newest event, by event time: how many there are,
    how many have a label, and the median seconds from an event to its label, where that came later;
    None for a recording."""

    events: int
    labelled: int
    delay_s: float | None
