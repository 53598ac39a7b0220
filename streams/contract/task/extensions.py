"""What installed packages add by name: entry points of the groups `tidewheel.strategies`,
`tidewheel.metrics` and `tidewheel.sinks`; and the Protocols of code that is not Tidewheel's.

A package declares them in its pyproject.toml; nothing of it is imported until its name is used:

    [project.entry-points."tidewheel.strategies"]
    geomed = "tidewheel_geomed:GeometricMedian"

    kind        the entry point is                         it is named by
    strategies  a Strategy's class, called without         Training.strategy, --strategy
                arguments at the start of a run
    metrics     a Metric of the entry point's name         Task.metric
    sinks       a function (place, job) -> Sink            tidewheel score --to NAME://PLACE

A name that is built in cannot be replaced.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from streams.contract.errors import TidewheelError, UsageError, line_of, own_line

if TYPE_CHECKING:  # a device has no pyarrow, and few tasks name what is not built in
    from importlib.metadata import EntryPoint

    import pyarrow as pa

    from streams.contract.task.parts import Reading, Readings

Kind = Literal["strategies", "metrics", "sinks"]


def extensions(kind: Kind) -> "dict[str, EntryPoint]":
    """Return what installed packages add, by name; nothing of them is imported."""
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=f"tidewheel.{kind}")}


def package_of(kind: Kind, name: str) -> str:
    """Return the name of the package that adds `name`."""
    found = extensions(kind)[name].dist
    return found.name if found is not None else "a package"


def load_extension(kind: Kind, name: str) -> Any:
    """Import and return what a package adds by this name; raise UsageError where that fails."""
    point = extensions(kind)[name]
    try:
        return point.load()
    except Exception as exc:  # another's code: its import may raise anything
        raise UsageError(
            f"{package_of(kind, name)} adds {name} to tidewheel.{kind} by {point.value}, which "
            f"cannot be imported: {type(exc).__name__}: {exc}"
        ) from exc


def choices(kind: Kind, built_in: Collection[str]) -> str:
    """Return the names that there are, and how one is added, for a message."""
    added = ", ".join(sorted(extensions(kind))) or "none is installed"
    packages = f"packages' entry points tidewheel.{kind} ({added})"
    return f"one of {', '.join(built_in)}, or of {packages}"


class Move(NamedTuple):
    """One device's differences from the weights that were sent, float64, by the names of tensors;
    and its number of samples, capped.

    >>> import numpy as np
    >>> from tidewheel import Move
    >>> Move({"head.weight": np.zeros((2, 4))}, samples=640).samples
    640
    """

    tensors: dict[str, np.ndarray]
    samples: int


class Strategy(Protocol):
    """How the updates of a round become one model: the entry points `tidewheel.strategies`.

    `step` returns by how much each tensor moves, `statistics` the same of running means and
    variances of batch norm. A round with fewer than `least` updates keeps its weights. by_number:
    the step of a number depends on that number of each update alone; tensors then come in flat
    blocks. is_mean: it is the mean weighted by samples; devices that did not use a row of an
    embedding do not count there. `state` is kept between rounds, in checkpoints, and given to
    `load`.

    >>> import numpy as np
    >>> from tidewheel import Move, Strategy
    >>> class Middle:
    ...     name, least, by_number, is_mean = "middle", 3, True, False
    ...     def step(self, moves):
    ...         names = moves[0].tensors
    ...         return {n: np.median([m.tensors[n] for m in moves], axis=0) for n in names}
    ...     statistics = step
    ...     def state(self): return {}
    ...     def load(self, state): pass
    >>> rule: Strategy = Middle()
    >>> moves = [Move({"bias": np.array([x])}, samples=1) for x in (1.0, 2.0, 99.0)]
    >>> rule.step(moves)["bias"].tolist()
    [2.0]
    """

    name: str
    least: int
    by_number: bool
    is_mean: bool

    def step(self, moves: Sequence[Move]) -> dict[str, np.ndarray]: ...

    def statistics(self, moves: Sequence[Move]) -> dict[str, np.ndarray]: ...

    def state(self) -> dict[str, np.ndarray]: ...

    def load(self, state: Mapping[str, np.ndarray]) -> None: ...


class MetricFunction(Protocol):
    """What `Metric.of` is: outputs (n, outputs) and labels (n, 1) or (n, targets) to a float, NaN
    where it is not defined for these rows. A package adds a whole Metric: the entry points
    `tidewheel.metrics`. It runs on the server and on devices, which need the package too.

    >>> import numpy as np
    >>> from tidewheel import Metric, MetricFunction
    >>> def cost(outputs, labels):
    ...     wrong = outputs.argmax(axis=1) != labels[:, 0]
    ...     return float((wrong * (1 + 4 * labels[:, 0])).sum())
    >>> of: MetricFunction = cost
    >>> Metric("cost", of, greater_is_better=False).of(np.eye(2), np.array([[1.0], [1.0]]))
    5.0
    """

    def __call__(self, outputs: np.ndarray, labels: np.ndarray, /) -> float: ...


class Source(Protocol):
    """Where a device's readings come from: `Task.readings`. It is called on the device with its
    name; the readings come in order of time, and it may block until there is another one.

    >>> from tidewheel import Reading, Source
    >>> def thermometer(device):
    ...     for second, value in enumerate((20.5, 20.6)):
    ...         yield Reading(second * 1_000_000, (value,))
    >>> source: Source = thermometer
    >>> [reading.values for reading in source("cellar")]
    [(20.5,), (20.6,)]
    """

    def __call__(self, device: str, /) -> "Iterator[Reading | Readings]": ...


class Sink(Protocol):
    """What the shards of a batch job are loaded into: the entry points `tidewheel.sinks`, each a
    function (place, job) -> Sink.

    place: all of `--to NAME://PLACE`; job: its ID. `check` raises UsageError if the rows do not
    fit, and changes nothing; `prepare` creates what is missing. `load` adds the rows of a shard's
    Parquet file, all or none; with `again` instead of those that may be there from a process that
    died. `count` returns how many rows of the job are there, None if that cannot be known.
    BrokerUnavailable, or another error whose class is Retryable, is tried again; any other one
    fails the job, which can be resumed.

    >>> import pyarrow.parquet as pq
    >>> from tidewheel import Sink
    >>> class Memory:
    ...     def __init__(self, place, job): self.shards = {}
    ...     def check(self, schema): pass
    ...     def prepare(self, schema): pass
    ...     def load(self, shard, part, *, again): self.shards[shard] = pq.read_table(part)
    ...     def count(self): return sum(rows.num_rows for rows in self.shards.values())
    >>> sink: Sink = Memory("memory://rows", "job-1")
    >>> sink.count()
    0
    """

    def check(self, schema: "pa.Schema") -> None: ...

    def prepare(self, schema: "pa.Schema") -> None: ...

    def load(self, shard: int, part: Path, *, again: bool) -> None: ...

    def count(self) -> int | None: ...


OpenSink = Callable[[str, str], Sink]


class PackageSink:
    """A package's sink. What its code raises becomes TidewheelError, with the names of both;
    TidewheelErrors stay as they are. What fails before a job is submitted is a UsageError."""

    def __init__(self, place: str, job: str) -> None:
        name = place.partition("://")[0]
        self._what = f"sink {name} of {package_of('sinks', name)}"
        made: OpenSink = load_extension("sinks", name)
        with self._translated(UsageError):
            self._sink: Sink = made(place, job)

    def check(self, schema: "pa.Schema") -> None:
        with self._translated(UsageError):
            self._sink.check(schema)

    def prepare(self, schema: "pa.Schema") -> None:
        with self._translated(TidewheelError):
            self._sink.prepare(schema)

    def load(self, shard: int, part: Path, *, again: bool) -> None:
        with self._translated(TidewheelError):
            self._sink.load(shard, part, again=again)

    def count(self) -> int | None:
        with self._translated(TidewheelError):
            return self._sink.count()

    @contextmanager
    def _translated(self, kind: type[TidewheelError]) -> Iterator[None]:
        try:
            yield
        except TidewheelError:
            raise
        except Exception as exc:
            text = f"{self._what}: {type(exc).__name__}: {line_of(exc)}{own_line(exc)}"
            raise kind(text) from exc
