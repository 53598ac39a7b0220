"""The Flower ServerApp: a run's settings, and its fleet as messages through Flower's grid.

The grid's own `send_and_receive` sleeps 3 s between two looks for replies; this one looks every
POLL_S. What a device's reply may hold is in `edge_client.client_app`; nothing in it is trusted.
"""

import logging
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.app import UserConfig as RunConfig
from flwr.serverapp import Grid, ServerApp

from federation import strategies
from federation.admission import Refusal, Update
from federation.aggregator import Aggregator
from federation.exchange import Answer, Op, Tensors, Work, cutoff_s
from federation.journal import Journal
from federation.registry import Registry
from federation.reports import Reports
from federation.rounds import FederatedRun, RunSettings
from streams.contract.bus import BrokerSettings, Producer, Reader
from streams.contract.errors import UsageError
from streams.contract.failpoints import read_failpoint
from streams.contract.signing import load_private_key, load_public_key
from streams.contract.task import Task, load_task, strategy_problem
from streams.contract.topics import FLEET, topic_name

POLL_S = 0.2  # each look costs the SuperLink about 5 ms
TTL_SPARE_S = 5.0  # a message outlives its deadline a little, and no longer: a device that comes
# back later would train for nobody
MAX_REPLY_BYTES = 1 << 28
RUN_ID = re.compile(r"[A-Za-z0-9_-]{0,63}")  # it is a folder's name

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    log = logging.getLogger(
        "federation"
    )  # not the root: httpx would tell of every look for replies
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)
    run = federated_run(grid, str(context.run_id), context.run_config)
    verdict = run.run()
    log.info("%s: %s", "promoted" if verdict.promote else "rejected", verdict.reason)


def federated_run(grid: Grid, run: str, config: RunConfig) -> FederatedRun:
    """Everything that a run needs, from its settings; UsageError names what is wrong."""
    task = load_task(str(config["task"]))
    state = Path(str(config["state"]))
    key = load_private_key(_path(config, "signing-key", state / "keys" / "signing.pem"))
    trusted = [key.public_key()]
    if config.get("trusted-key"):
        trusted.append(load_public_key(Path(str(config["trusted-key"]))))
    folder = _path(config, "registry", state / "registry")
    settings = run_settings(task, run, config, state / "runs")
    kafka = str(config.get("kafka") or "")
    broker = BrokerSettings.model_validate({"bootstrap": kafka} if kafka else {})
    journal = Journal(
        task.name, run, settings.runs / run / "rounds.jsonl", lambda: Producer(broker)
    )
    registry = Registry(folder, task.name, task.version, trusted)
    fleet, aggregator = FlowerFleet(grid), run_aggregator(task, config)
    topic = topic_name(task.name, FLEET)
    reports = Reports(lambda: Reader(broker, [topic], from_beginning=False, timeout_s=3.0))
    return FederatedRun(
        task, settings, registry, key, fleet, journal, aggregator, reports,
        failpoint=read_failpoint(os.environ),
    )  # fmt: skip


def run_aggregator(task: Task, config: RunConfig) -> Aggregator:
    """That of the setting `strategy`, or the task's, with the task's parameters."""
    training = task.training
    strategy = str(config.get("strategy") or training.strategy)
    if problem := strategy_problem(strategy, training):
        raise UsageError(f"run setting {problem}")
    return strategies.make(strategy, training.aggregation, training.shared)


def run_settings(task: Task, run: str, config: RunConfig, runs: Path) -> RunSettings:
    """The run's settings; zero (or a negative margin) means what the task says."""
    training = task.training
    try:
        margin = float(config["margin"])
        settings = RunSettings(
            run=run,
            rounds=int(config["rounds"]) or training.rounds,
            minimum_nodes=int(config["minimum-nodes"]),
            node_wait_s=float(config["node-wait-s"]),
            round_deadline_s=float(config["round-deadline-s"]),
            epochs=int(config["epochs"]) or training.epochs,
            batch_size=int(config["batch-size"]) or training.batch_size,
            learning_rate=float(config["learning-rate"]) or training.learning_rate,
            margin=task.margin if margin < 0 else margin,
            seed=int(config["seed"]),
            runs=runs,
            resume=str(config.get("resume") or ""),
        )
    except (KeyError, ValueError, TypeError) as exc:
        raise UsageError(f"run setting: {exc!r}") from exc
    least = {"rounds": settings.rounds, "minimum-nodes": settings.minimum_nodes}
    for name, value in {**least, "round-deadline-s": settings.round_deadline_s}.items():
        if value < 1:
            raise UsageError(f"run setting {name} must be at least 1, not {value}")
    if not RUN_ID.fullmatch(settings.resume):
        raise UsageError(f"run setting resume: {settings.resume!r} is no run's id")
    return settings


def _path(config: RunConfig, name: str, default: Path) -> Path:
    return Path(str(config.get(name) or default))


class FlowerFleet:
    """The SuperNodes of this run."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def nodes(self) -> list[int]:
        return sorted(self._grid.get_node_ids())

    def exchange(
        self, op: Op, nodes: Sequence[int], work: Work, weights: Tensors, deadline_s: float
    ) -> list[Answer]:
        """Push to all nodes, pull until all have replied, most have and the rest are late, or the
        deadline. Replies carry no node when they are errors: the message replied to tells."""
        kind = MessageType.TRAIN if op == "train" else MessageType.EVALUATE
        content = RecordDict(
            {
                "weights": ArrayRecord({name: Array(value) for name, value in weights.items()}),
                "work": ConfigRecord(asdict(work)),
            }
        )
        ttl, group = deadline_s + TTL_SPARE_S, str(work.round)
        messages = [Message(content, node, kind, ttl=ttl, group_id=group) for node in nodes]
        began = time.monotonic()
        sent = zip(self._grid.push_messages(messages), nodes, strict=True)
        waiting = {message: node for message, node in sent if message}
        answers: list[Answer] = []
        replied: list[float] = []
        while waiting and time.monotonic() - began < cutoff_s(replied, len(nodes), deadline_s):
            for reply in self._grid.pull_messages(list(waiting)):
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    answers.append(read_reply(node, reply))
                    replied.append(time.monotonic() - began)
            time.sleep(POLL_S)
        answered = {answer.node for answer in answers}
        late = f"no reply within {time.monotonic() - began:.0f} s"
        return answers + [Answer(node, error=late) for node in nodes if node not in answered]


def read_reply(node: int, reply: Message) -> Answer:
    """Take a reply apart; one that is not as agreed is a refusal, whatever it holds."""
    if reply.has_error():
        return Answer(node, error=f"Flower error {reply.error.code}: {reply.error.reason}")
    device: str | None = None
    try:
        about = reply.content.config_records["device"]
        device = _text(about, "device")
        if error := _text(about, "error"):
            return Answer(node, device, error=error)
        update = Update(
            device=device,
            task=_text(about, "task"),
            task_version=_whole(about, "task_version"),
            base=_text(about, "base"),
            samples=_whole(reply.content.metric_records["metrics"], "num-examples"),
            weights=_tensors(reply.content.array_records["weights"]),
            metrics=_metrics(reply.content.metric_records["metrics"]),
        )
    except Exception as exc:  # numpy's reader alone raises a dozen kinds on hostile bytes
        return Answer(node, device, refusal=Refusal("malformed", repr(exc)[:200]))
    return Answer(node, device, update)


def _tensors(record: ArrayRecord) -> Tensors:
    if sum(len(array.data) for array in record.values()) > MAX_REPLY_BYTES:
        raise ValueError(f"more than {MAX_REPLY_BYTES} bytes of weights")
    return {str(name): np.asarray(array.numpy()) for name, array in record.items()}


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
    """The finite single numbers of a metric record; anything else is passed over."""
    found = {}
    for name, value in record.items():
        if name != "num-examples" and isinstance(value, int | float) and np.isfinite(value):
            found[str(name)[:60]] = float(value)
    return found
