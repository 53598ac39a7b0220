"""Rows per second: the worker, its limit, other frameworks, two workers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tests.bench.meter import Measure
from tests.bench.report import Cell, Goal, Results, Table
from tests.bench.streams.feed.plan import Plan
from tests.bench.streams.feed.tasks import HAR, TRIVIAL
from tests.bench.streams.subject import COLUMNS, DEVICES, HOP_US, PER_MESSAGE, Bench

# glibc's allocator keeps what it has had: else it is luck whether each forward pass maps its memory
# anew, which takes up to a third of a contender's time. All contenders have it.
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(512 << 20)}

LIMIT, OVERLAPPED, WORKER = "limit: one aiokafka loop", "limit, overlapped", "worker"
PLAIN, TWO = "worker, allocator as it comes", "2 workers"
TWO_LIMITS = "limit, overlapped, in 2 processes"
TITLES = {HAR: "HAR's teacher", TRIVIAL: "a linear teacher"}


@dataclass(frozen=True)
class Rival:
    """Another way to do the job; `at_least` is how many times as fast the worker is to be."""

    name: str
    module: str
    options: tuple[str, ...] = ()
    at_least: float | None = None


SHORT = {
    HAR: [
        Rival("Kafka-ML's way (confluent-kafka)", "kafka_ml", ("confluent",), 20.0),
        Rival("Kafka-ML's old way (kafka-python)", "kafka_ml"),
        Rival("Quix Streams", "quix_app", (), 2.0),
        Rival("Bytewax", "wax_flow", (), 1.8),
        Rival("Bytewax with recovery", "wax_flow", ("recovery",), 1.8),
        Rival("plain Faust", "faust_app"),
    ],
    TRIVIAL: [
        Rival("Kafka-ML's way (confluent-kafka)", "kafka_ml", ("confluent",), 20.0),
        Rival("Quix Streams", "quix_app", (), 2.0),
        Rival("Bytewax", "wax_flow", (), 1.5),
    ],
}
WHOLE = [
    Rival("Quix Streams, whole job", "quix_app", ("whole",), 2.0),
    Rival("Bytewax with recovery, whole job", "wax_flow", ("recovery", "whole"), 1.8),
]


def throughput(bench: Bench, results: Results) -> None:
    """The worker, its limit and all rivals in turns, with HAR's teacher and with one that costs
    next to nothing."""
    for task in TITLES:
        plan, single = bench.backlog(task, bench.size.rounds), _single(bench, task)
        contenders: dict[str, Callable[[], Measure]] = {
            LIMIT: partial(bench.stage.contend, "limit", plan, environ=KEEP),
            OVERLAPPED: partial(bench.stage.contend, "limit", plan, "overlapped", environ=KEEP),
            WORKER: partial(bench.drained, plan, 1, KEEP),
        }
        if task == HAR:
            contenders[PLAIN] = partial(bench.drained, plan)
        rivals = SHORT[task] + (WHOLE if task == HAR else [])
        contenders |= {one.name: partial(_contend, bench, plan, single, one) for one in rivals}
        if task == HAR:
            contenders[TWO] = partial(bench.drained, plan, 2, KEEP)
            contenders[TWO_LIMITS] = partial(
                bench.stage.contend_in_two, "limit", plan, "overlapped", environ=KEEP
            )
        bench.turns(task, contenders)
        _limit(bench, task, plan, results)
        _elsewhere(bench, task, plan, results)
        if task == HAR:
            _whole(bench, results)
            _workers(bench, plan, results)


def _single(bench: Bench, task: str) -> Plan:
    plan = bench.stage.plan(
        task,
        devices=1,
        rounds=bench.size.single,
        per_message=1,
        hop_us=HOP_US,
        single=True,
        partitions=1,
    )
    bench.stage.preload(plan)
    return plan


def _contend(bench: Bench, plan: Plan, single: Plan, rival: Rival) -> Measure:
    if rival.module == "kafka_ml":
        return bench.stage.contend(rival.module, single, *rival.options, environ=KEEP)
    folder = bench.stage.new_folder(rival.module)
    folder.mkdir(parents=True)
    python = bench.quix if rival.module == "quix_app" else None
    arguments = (str(folder), *rival.options)
    return bench.stage.contend(rival.module, plan, *arguments, python=python, environ=KEEP)


def _limit(bench: Bench, task: str, plan: Plan, results: Results) -> None:
    limit = max((bench.runs[task, name] for name in (LIMIT, OVERLAPPED)), key=lambda r: r.speed)
    ours = bench.runs[task, WORKER]
    names = [name for name in (LIMIT, OVERLAPPED, WORKER, PLAIN) if (task, name) in bench.runs]
    text = (
        f"{plan.rows:,} rows of HAR's shape (6 x 128 float32) of {DEVICES} devices, {PER_MESSAGE} "
        f"a message, {plan.windows():,} windows, {plan.partitions} partitions. The limit is its "
        "faster form."
    )
    columns = ["", "rows/s", "of the limit", *COLUMNS]
    found = [(name, bench.runs[task, name]) for name in names]
    rows = [one.cells(name, 1 if one is limit else one.to(limit)) for name, one in found]
    results.tables.append(Table(f"The worker and its limit, {TITLES[task]}", text, columns, rows))
    if (share := ours.to(limit)) is not None:
        goal = 0.7 if task == HAR else 0.6
        results.goals.append(Goal(f"worker / limit, {TITLES[task]}", share, at_least=goal))


def _rivals(bench: Bench, task: str, rivals: Sequence[Rival], results: Results) -> list[list[Cell]]:
    """The rows of the worker and of its rivals, and their goals."""
    ours = bench.runs[task, WORKER]
    rows = [ours.cells(WORKER, 1)]
    for rival in rivals:
        theirs = bench.runs[task, rival.name]
        times = ours.to(theirs)
        rows.append(theirs.cells(rival.name, times))
        if times is not None:
            text = f"worker / {rival.name}, {TITLES[task]}"
            results.goals.append(Goal(text, times, at_least=rival.at_least))
    return rows


def _elsewhere(bench: Bench, task: str, plan: Plan, results: Results) -> None:
    text = (
        f"Decode, window, score and write Parquet: {plan.rows:,} rows, {bench.size.single:,} in "
        "Kafka-ML's way, which has neither windows nor files. The worker does its whole job. Quix "
        "Streams keeps windows in RocksDB and on changelog topics; Faust in memory and on a "
        "changelog topic; Bytewax in memory, and with recovery it takes a snapshot each 10 s. Its "
        "watermark also moves with the clock: events of a device that waits its turn in a backlog "
        "can be late, and are lost. Plain Faust, with which the worker is built, waits for most of "
        "the time: it takes no message while more than 100 of its changelog are unsent. Larger "
        "batches, a linger and a thread for its producer change little; an entry a piece in the "
        "table, not a device, takes twice as long. So its ratio is what the changelog of a table "
        "costs, which the worker does without. Kafka-ML's old way has no goal: its "
        "present client is faster."
    )
    columns = ["", "rows/s", "worker is faster by", *COLUMNS]
    rows = _rivals(bench, task, SHORT[task], results)
    results.tables.append(Table(f"A shorter job elsewhere, {TITLES[task]}", text, columns, rows))


def _whole(bench: Bench, results: Results) -> None:
    text = (
        "As near to the worker's job as each framework's API allows: drop events that come twice, "
        "window, score, commit to a Delta table, publish scores and a report of each window and "
        "wait for the broker. What stays different: none of them counts drift, closes windows of a "
        "silent device, or numbers revisions; their store and their offsets are not fenced against "
        "a second owner, and a crash between both stores rows twice."
    )
    columns = ["", "rows/s", "worker is faster by", *COLUMNS]
    rows = _rivals(bench, HAR, WHOLE, results)
    results.tables.append(Table(f"The whole job elsewhere, {TITLES[HAR]}", text, columns, rows))


def _workers(bench: Bench, plan: Plan, results: Results) -> None:
    names = [(WORKER, WORKER), (TWO, WORKER), (OVERLAPPED, OVERLAPPED), (TWO_LIMITS, OVERLAPPED)]
    rows = []
    for name, alone in names:
        runs, one = bench.runs[HAR, name], bench.runs[HAR, alone]
        _, speed, ratio, *rest = runs.cells(name, 1 if runs is one else runs.to(one))
        rows.append([name, speed, ratio, None if runs.failure else runs.cores, *rest])
    text = (
        f"{plan.rows:,} rows with HAR's teacher, {plan.partitions} partitions. The clock starts "
        "when each worker has its partitions; what is in the store by then does not count. Two "
        "workers and the broker share two cores, of which one worker alone takes what *cores* "
        "says: more than 2 to that is out of reach. The limit in two processes, each with half of "
        "the partitions and one start for both, is what any two can gain here."
    )
    columns = ["", "rows/s", "to one", "cores", *COLUMNS]
    results.tables.append(Table("Two workers", text, columns, rows))
    for name, alone, least in ((TWO, WORKER, 1.3), (TWO_LIMITS, OVERLAPPED, None)):
        if (ratio := bench.runs[HAR, name].to(bench.runs[HAR, alone])) is not None:
            results.goals.append(Goal(f"{name} / one", ratio, at_least=least))
