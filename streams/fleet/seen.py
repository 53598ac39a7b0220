"""Which reports on `windows` came before, in memory that neither the fleet's size nor time adds to.

A worker publishes a commit's reports in their order of commits, and again only those of a commit
that may not have been published whole (streams.worker.commit.committer). So of each Kafka
partition a reader remembers the newest commit and the names of its reports: what is of an earlier
one came before. Rows and labels have commits of their own. Another store, as after one was deleted,
counts anew.
"""

from collections.abc import Mapping
from hashlib import blake2b

from streams.contract.window_report import WindowReport

Last = tuple[str, int, list[int]]  # of a partition: the store, its newest commit, its reports


class SeenReports:
    """The newest commit of each partition, and which of its reports were seen."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, int, set[int]]] = {}

    def is_new(self, report: WindowReport) -> bool:
        """Return whether the report was not seen, and remember it."""
        place = f"{report.partition}/{'rows' if report.events else 'labels'}"
        store, commit, names = self._last.get(place, (report.store, -1, set()))
        if store == report.store and report.commit < commit:
            return False
        if (store, commit) != (report.store, report.commit):
            names = set()
        self._last[place] = report.store, report.commit, names
        name = f"{report.device} {report.window_us} {report.revision}".encode()
        number = int.from_bytes(blake2b(name, digest_size=8).digest(), "big")
        if number in names:
            return False
        names.add(number)
        return True

    def dump(self) -> dict[str, Last]:
        return {place: (s, n, sorted(names)) for place, (s, n, names) in self._last.items()}

    @classmethod
    def load(cls, found: Mapping[str, Last]) -> "SeenReports":
        made = cls()
        for place, (store, commit, names) in found.items():
            made._last[place] = store, commit, set(names)
        return made
