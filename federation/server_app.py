"""The Flower ServerApp: a run's settings, and its fleet through Flower's grid.

The grid's own `send_and_receive` sleeps 3 s between two polls for replies; `rounds.collector` polls
more often. The content of a reply is defined in streams.contract.work; it is untrusted.

A round keeps all its updates until it ends, parked on disk: admission compares them with each
other, and rules look at all of a tensor.
"""

import ctypes
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.app import UserConfig as RunConfig
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.superlink.grid import http_grid

from federation.admission import Refusal, Tensors, Update, registered
from federation.evaluation import recent_windows
from federation.evaluation.recent_windows import RecentWindows
from federation.registry.registry import Registry
from federation.rounds import strategies
from federation.rounds.aggregator import Aggregator
from federation.rounds.checkpoint import park
from federation.rounds.collector import Reply
from federation.rounds.event_log import JOURNAL, EventLog, beginning
from federation.rounds.fleet_reports import FleetReports
from federation.rounds.participants import Inviter
from federation.rounds.privacy import Ledger, private
from federation.rounds.run import FederatedRun
from federation.rounds.settings import policy, run_settings
from streams.contract.errors import UsageError
from streams.contract.task import Task, load_task, strategy_problem
from streams.contract.task.metrics import metric_of
from streams.contract.topics import FLEET, topic_name
from streams.contract.weights import payload
from streams.contract.work import SAMPLES, WRONG_TASK, Op, Work, block_of, with_block
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from streams.runtime.failpoints import read_failpoint
from streams.runtime.process import handler
from streams.runtime.tracing import open_tracing
from streams.runtime.trust import load_private_key, load_public_key

HEARTBEATS_S = 25.0  # before a run: a device says something every 20 s at most
REGISTERED_S = 5.0  # how often the registered nodes are read again
M_MMAP_THRESHOLD = -3  # of mallopt
AT_ONCE = 1 << 24
AHEAD = 2  # a message whose parts are still being sent holds up the question for it
AGAIN_S, CAP_S = 0.1, 0.4  # then twice as long, up to the second
NO_KAFKA = "none"  # the setting `kafka` of a run without Kafka


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    with suppress(AttributeError, OSError):  # macOS and musl keep less of what is freed than glibc
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 24)
    ask_sooner()
    log = logging.getLogger("federation")  # not the root, where httpx would log every poll
    log.addHandler(handler())
    log.setLevel(logging.INFO)
    config, number = context.run_config, str(context.run_id)
    with beginning(number, Path(str(config["state"])) / "runs" / number):
        run = federated_run(grid, number, config)
    verdict = run.run()
    log.info("%s: %s", "promoted" if verdict.promote else "rejected", verdict.reason)


def ask_sooner() -> None:
    """Let Flower's grid ask again after AGAIN_S for a part of a reply that its device is still
    sending, in place of a second, and first for the last part that is sent, the message itself: it
    waits in each round of a large model, and each question is work for the SuperLink."""

    def pull(object_ids: list[str], pull_object_fn: Callable[[str], bytes]) -> dict[str, bytes]:
        *parts, message = object_ids
        return asked([message], pull_object_fn) | asked(parts, pull_object_fn)

    asked = partial(
        pull_objects, initial_backoff=AGAIN_S, backoff_cap=CAP_S, max_tries_per_object=None
    )
    http_grid.pull_objects = pull  # type: ignore[assignment, attr-defined]


def federated_run(grid: Grid, run: str, config: RunConfig) -> FederatedRun:
    """Return the run with everything it needs, from its settings; raise UsageError if one is
    wrong."""
    task = load_task(str(config["task"]))
    state = Path(str(config["state"]))
    own_key = config.get("signing-key") or state / "keys" / "signing.pem"
    key = load_private_key(Path(str(own_key)))
    trusted = [key.public_key(), *map(load_public_key, sorted((state / "keys").glob("*.pub")))]
    place = str(config.get("registry") or state / "registry")
    settings = run_settings(task, run, config, state / "runs")
    broker = _broker(str(config.get("kafka") or ""))
    connect = None if broker is None else lambda: Producer(broker)
    path, metric = settings.runs / run / JOURNAL, metric_of(task).name
    journal = EventLog(task.id, run, path, connect, metric=metric)
    registry = Registry(place, task.name, task.version, trusted)
    fleet = FlowerFleet(
        grid, registered=lambda: registered(state / "keys"), parking=settings.runs / run
    )
    aggregator = run_aggregator(task, config, state)
    reports = None if broker is None else _reports(task, broker)
    superlink = str(config.get("superlink") or "")
    inviter = None
    if broker is not None and superlink:
        inviter = Inviter(task, run, superlink, key, journal.producer, settings.resume)
    return FederatedRun(
        task, settings, registry, key, fleet, journal, aggregator, reports,
        policy(task, run_strategy(task, config)),
        recent=None if broker is None else lambda: _recent(task, broker),
        failpoint=read_failpoint(os.environ),
        rollout=broker is not None,
        tracing=open_tracing(os.environ, "tidewheel-rounds", run, task.name, share=1.0),
        inviter=inviter,
    )  # fmt: skip


def _broker(kafka: str) -> BrokerSettings | None:
    """Return the broker's settings; None for a run without Kafka."""
    if kafka == NO_KAFKA:
        return None
    return BrokerSettings.at(kafka)


def _reports(task: Task, broker: BrokerSettings) -> FleetReports:
    topic = topic_name(task.id, FLEET)

    def connect() -> Reader:
        reader = Reader(broker, [topic], from_beginning=False, timeout_s=3.0)
        reader.seek_back(time.time_ns() // 1_000_000 - int(HEARTBEATS_S * 1000))
        return reader

    return FleetReports(connect)


def _recent(task: Task, broker: BrokerSettings) -> RecentWindows | None:
    return recent_windows.read(task, lambda topic: Reader(broker, [topic], timeout_s=3.0))


def run_strategy(task: Task, config: RunConfig) -> str:
    """Return the setting `strategy`, or the task's; raise UsageError if it is invalid."""
    strategy = str(config.get("strategy") or task.training.strategy)
    if problem := strategy_problem(strategy, task.training):
        raise UsageError(f"run setting {problem}")
    return strategy


def run_aggregator(task: Task, config: RunConfig, state: Path) -> Aggregator:
    """Return the aggregator of the run's strategy; the state folder has the spent privacy."""
    privacy, strategy = task.training.privacy, run_strategy(task, config)
    if privacy is not None:
        return private(strategy, privacy, Ledger(state / "privacy.json"))
    return strategies.make(strategy)


class _Waiting(NamedTuple):
    node: int
    op: Op
    round: int
    until: float


class FlowerFleet:
    """The SuperNodes of this run: those of `registered`, devices by node, or where that has none
    all that do not answer for another task. `clock` in seconds; updates wait in the folder
    `parking`, None for memory."""

    def __init__(
        self,
        grid: Grid,
        clock: Callable[[], float] = time.monotonic,
        registered: Callable[[], Mapping[int, str]] = dict,
        parking: Path | None = None,
    ) -> None:
        self._grid, self._clock, self._registered = grid, clock, registered
        self._parking = parking
        self._names, self._read_at = registered(), clock()
        self._others: set[int] = set()  # nodes of other tasks
        self._waiting: dict[str, _Waiting] = {}  # by message
        self._sent: dict[int, Tensors] = {}  # by round, while replies may come

    def nodes(self) -> list[int]:
        if self._clock() - self._read_at > REGISTERED_S:
            self._names, self._read_at = self._registered(), self._clock()
        online = set(self._grid.get_node_ids()) - self._others
        return sorted(online & set(self._names) if self._names else online)

    def send(
        self, op: Op, nodes: Sequence[int], work: Work, weights: Tensors, ttl_s: float
    ) -> None:
        """Send work with its weights (streams.contract.work)."""
        kind = MessageType.TRAIN if op == "train" else MessageType.EVALUATE
        block = payload.encode_weights(weights, work.payload)
        records = with_block("work", work.fields(), block)
        content = RecordDict({name: ConfigRecord(record) for name, record in records.items()})
        group = str(work.round)
        messages = [Message(content, node, kind, ttl=ttl_s, group_id=group) for node in nodes]
        until = self._clock() + ttl_s
        for message, node in zip(self._grid.push_messages(messages), nodes, strict=True):
            if message:
                self._waiting[message] = _Waiting(node, op, work.round, until)
        self._sent[work.round] = weights

    def receive(self) -> list[Reply]:
        """Return new replies. Error replies name no node, so it is found by the message that they
        reply to."""
        now = self._clock()
        self._waiting = {m: w for m, w in self._waiting.items() if w.until > now}
        answers = []
        for reply in self._pulled():
            found = self._waiting.pop(reply.metadata.reply_to_message_id, None)
            if found is not None:
                answer = read_reply(found.node, reply, self._sent[found.round])
                if answer.update is not None:
                    weights = park(answer.update.weights, self._parking)
                    answer = replace(answer, update=replace(answer.update, weights=weights))
                answer = self._by_its_key(answer)
                if (answer.error or "").startswith(WRONG_TASK):
                    self._others.add(answer.node)
                answers.append(replace(answer, round=found.round, op=found.op))
        used = {waiting.round for waiting in self._waiting.values()}
        self._sent = {number: sent for number, sent in self._sent.items() if number in used}
        return answers

    def _pulled(self) -> Iterator[Message]:
        """Yield the replies that have come, of which few are in memory at a time: they are asked
        for in groups whose weights are of AT_ONCE bytes, the next AHEAD while one is read. The
        first group without a reply ends it, and comes last the next time: each question is work for
        the SuperLink, and devices are still training on its machine."""
        waiting = list(self._waiting)
        rounds = {each.round for each in self._waiting.values() if each.op == "train"}
        sizes = [sum(t.nbytes for t in self._sent[number].values()) for number in rounds]
        count = max(1, AT_ONCE // max(sizes)) if any(sizes) else max(1, len(waiting))
        groups = deque(waiting[at : at + count] for at in range(0, len(waiting), count))
        coming: deque[tuple[list[str], Future[Iterable[Message]]]] = deque()
        with ThreadPoolExecutor(AHEAD) as ahead:

            def ask(most: int) -> None:
                while groups and len(coming) < most:
                    group = groups.popleft()
                    coming.append((group, ahead.submit(self._grid.pull_messages, group)))

            ask(1)
            while coming:
                group, pulled = coming.popleft()
                replies = list(pulled.result())
                if not replies:
                    self._waiting |= {message: self._waiting.pop(message) for message in group}
                    groups.clear()
                ask(AHEAD)
                while replies:
                    yield replies.pop(0)

    def _by_its_key(self, answer: Reply) -> Reply:
        """Return the reply; a refusal if its node was registered as another device."""
        name = self._names.get(answer.node, answer.device)
        if answer.update is None or answer.update.device == name:
            return answer
        detail = f"{answer.update.device[:63]!r} comes with the key of {name}"
        return Reply(answer.node, name, refusal=Refusal("node-key", detail))


def read_reply(node: int, reply: Message, sent: Tensors) -> Reply:
    """Parse a reply to the weights `sent`; a malformed one becomes a refusal."""
    if reply.has_error():
        return Reply(node, error=f"Flower error {reply.error.code}: {reply.error.reason}")
    device: str | None = None
    try:
        about = reply.content.config_records["device"]
        device = _text(about, "device")
        if error := _text(about, "error"):
            return Reply(node, device, error=error)
        update = Update(
            device=device,
            task=_text(about, "task"),
            task_version=_whole(about, "task_version"),
            base=_text(about, "base"),
            samples=_whole(reply.content.metric_records["metrics"], SAMPLES),
            weights=_tensors(block_of(reply.content.config_records, "device"), sent),
            metrics=_metrics(reply.content.metric_records["metrics"]),
        )
    except Exception as exc:  # hostile bytes raise many kinds of errors
        return Reply(node, device, refusal=Refusal("malformed", repr(exc)[:200]))
    return Reply(node, device, update)


def _tensors(block: bytes | None, sent: Tensors) -> Tensors:
    """Return the weights; none without a block, as after "evaluate"."""
    return {} if block is None else payload.restore_update(payload.unpack(block), sent)


def _text(record: Any, name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is a {type(value).__name__}, not text")
    return value


def _whole(record: Any, name: str) -> int:
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a {type(value).__name__}, not a whole number")
    return value


def _metrics(record: Any) -> dict[str, float]:
    """Return the finite single numbers of a metric record; ignore the others."""
    found = {}
    for name, value in record.items():
        if name != SAMPLES and isinstance(value, int | float) and np.isfinite(value):
            found[str(name)[:60]] = float(value)
    return found
