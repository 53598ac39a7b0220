"""What a device's reply may do to the server, and how a run's settings are read."""

import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import (
    ConfigRecord,
    Context,
    Error,
    Message,
    MessageType,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, pull_objects
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import http_grid

from federation import server_app
from federation.admission import Node, registered
from federation.rounds import collector
from federation.rounds.collector import Reply
from federation.rounds.event_log import why_failed
from federation.rounds.settings import RUN_CONFIG, run_settings
from federation.server_app import read_reply, run_aggregator
from streams.contract import work as work_module
from streams.contract.errors import UsageError
from streams.contract.task import Task
from streams.contract.weights import payload
from streams.contract.work import with_block
from streams.contract.zstd import compressed
from streams.runtime.files import write_atomic
from streams.runtime.trust import create_key
from tests.federation.conftest import TINY
from tests.rig.made_up.documents import work
from tests.rig.unwrap import unwrap

ABOUT = {"device": "d0", "task": "tiny", "task_version": 1, "base": "1-a", "error": ""}
METRICS = {"num-examples": 40, "correct": 3.0, "evaluated": 4.0}
SENT = {"w": np.zeros(2, np.float32)}
ONES = payload.pack({"w": np.ones(2, np.float32)})


def request() -> Message:
    about = Metadata(7, "m1", 1, 5, "", "1", 0.0, 60.0, MessageType.TRAIN)
    return Message(content=RecordDict(), metadata=about)


def answer(
    about: dict[str, object] | None = None,
    metrics: dict[str, object] | None = None,
    leave_out: str = "",
    more: dict[str, dict[str, object]] | None = None,
) -> Reply:
    records = {**with_block("device", ABOUT, ONES), **(more or {})}
    records["device"] |= about or {}
    content = RecordDict({name: ConfigRecord(record) for name, record in records.items()})
    content["metrics"] = MetricRecord({**METRICS, **(metrics or {})})  # type: ignore[dict-item]
    if leave_out:
        del content[leave_out]
    return read_reply(5, Message(content, reply_to=request()), SENT)


def test_an_error_of_flowers_or_of_the_device_is_a_failure_with_its_reason() -> None:
    found = read_reply(5, Message(Error(3, "expired"), reply_to=request()), {})
    assert (found.node, found.device, found.error) == (5, None, "Flower error 3: expired")
    assert answer(about={"error": "no agent"}).error == "no agent"


@pytest.mark.parametrize("record", ["metrics", "device"])
def test_a_missing_record_is_refused(record: str) -> None:
    refusal = unwrap(answer(leave_out=record).refusal)
    assert refusal.reason == "malformed"


@pytest.mark.parametrize(
    ("about", "metrics"),
    [
        ({"device": 5}, {}),
        ({"task_version": "1"}, {}),
        ({"task_version": True}, {}),
        ({"error": 1}, {}),
        ({}, {"num-examples": 1.5}),
        ({}, {"num-examples": [1, 2]}),
    ],
)
def test_a_field_of_another_type_is_refused(
    about: dict[str, object], metrics: dict[str, object]
) -> None:
    refusal = unwrap(answer(about, metrics).refusal)
    assert refusal.reason == "malformed"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no array",
        ONES[:-1],
        ONES + b"x",
        (1 << 40).to_bytes(8, "little") + ONES[8:],
        compressed(ONES)[:-1],
        compressed(b"no block"),
    ],
)
def test_bytes_that_are_no_block_are_refused(data: bytes) -> None:
    refusal = unwrap(answer(about={"weights": data}).refusal)
    assert refusal.reason == "malformed"


@pytest.mark.parametrize("block", [5, "text", [ONES], None])
def test_weights_that_are_no_bytes_are_refused(block: object) -> None:
    more = {"1": {"weights": block} if block is not None else {}}
    assert unwrap(answer(more=more).refusal).reason == "malformed"
    if block is not None:
        assert unwrap(answer(about={"weights": block}).refusal).reason == "malformed"


def test_a_block_travels_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "PART_BYTES", 16)
    assert len(with_block("device", {}, ONES)) > 3
    update = unwrap(answer().update)
    np.testing.assert_array_equal(update.weights["w"], [1, 1])


def test_metrics_that_are_no_finite_numbers_are_passed_over() -> None:
    update = unwrap(answer(metrics={"loss": float("nan"), "many": [1.0, 2.0], "fine": 2}).update)
    assert update.metrics == {"correct": 3.0, "evaluated": 4.0, "fine": 2.0}


def test_zero_means_what_the_task_says(tiny: Task) -> None:
    found = run_settings(tiny, "7", dict(RUN_CONFIG), Path("runs"))
    assert (found.rounds, found.epochs) == (3, 4)
    assert (found.learning_rate, found.margin) == (tiny.training.learning_rate, tiny.margin)
    changed = run_settings(tiny, "7", {**RUN_CONFIG, "rounds": 5}, Path("runs"))
    assert changed.rounds == 5


@pytest.mark.parametrize(
    "change",
    [
        {"rounds": -1},
        {"rounds": "many"},
        {"minimum-nodes": 0},
        {"round-deadline-s": 0.0},
        {"resume": "../7"},
    ],
)
def test_an_impossible_setting_is_named(tiny: Task, change: dict[str, int | str | float]) -> None:
    with pytest.raises(UsageError, match="run setting"):
        run_settings(tiny, "7", {**RUN_CONFIG, **change}, Path("runs"))


def test_the_strategy_is_the_settings_or_the_tasks(tiny: Task) -> None:
    assert run_aggregator(tiny, dict(RUN_CONFIG), Path()).name == "fedavg"
    careful = replace(tiny, training=replace(tiny.training, strategy="krum"))
    assert run_aggregator(careful, dict(RUN_CONFIG), Path()).least == 5
    assert run_aggregator(careful, {**RUN_CONFIG, "strategy": "median"}, Path()).name == "median"


@pytest.mark.parametrize(("strategy", "buffered"), [("fedavg", False), ("fedbuff", True)])
def test_a_private_run_gathers_as_its_strategy_does(
    tmp_path: Path, strategy: str, buffered: bool
) -> None:
    file = tmp_path / "private.py"
    file.write_text(
        f"from dataclasses import replace\nfrom streams.contract.task import Privacy, load_task\n"
        f"tiny = load_task({TINY!r})\n"
        "training = replace(tiny.training, privacy=Privacy(1.0, 1.0))\n"
        "task = replace(tiny, training=training)\n"
    )
    create_key(tmp_path / "keys" / "signing.pem")
    changes = {"task": f"{file}:task", "state": str(tmp_path), "kafka": "none"}
    config = {**RUN_CONFIG, **changes, "strategy": strategy}
    run = server_app.federated_run(Grid({}), "7", config)  # type: ignore[arg-type]
    assert run.policy.buffered == buffered
    assert run.aggregator.name == f"private {strategy}"
    assert run.aggregator.clip == 1.0


def test_a_run_that_cannot_begin_says_why_in_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's log says only that an exception was unhandled; its controller reads this."""
    monkeypatch.setattr(http_grid, "pull_objects", pull_objects)  # put back after the test
    log = logging.getLogger("federation")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "level", log.level)
    config = {**RUN_CONFIG, "task": "/nowhere/pumps.py:task", "state": str(tmp_path)}
    context = Context(7, 1, {}, RecordDict(), config)
    with pytest.raises(UsageError):
        server_app.main(Grid({}), context)  # type: ignore[arg-type]
    assert why_failed(tmp_path / "runs" / "7") == (
        "task '/nowhere/pumps.py:task': there is no file /nowhere/pumps.py"
    )


@pytest.mark.parametrize(
    ("strategy", "says"), [("sgd", "one of fedavg"), ("fedprox", "training.proximal")]
)
def test_a_strategy_that_cannot_be_is_named(tiny: Task, strategy: str, says: str) -> None:
    with pytest.raises(UsageError, match=f"run setting strategy.*{says}"):
        run_aggregator(tiny, {**RUN_CONFIG, "strategy": strategy}, Path())


Said = dict[str, object] | Error | None


class Grid:
    """Nodes, each of which answers what the test has it say: fields of its record, or an error of
    Flower's, whose replies come from no node, or nothing."""

    def __init__(self, said: dict[int, Said]) -> None:
        self.said, self.sent = said, list[Message]()

    def get_node_ids(self) -> list[int]:
        return [*self.said]

    def push_messages(self, messages: list[Message]) -> list[str]:
        self.sent = messages
        return [f"m{message.metadata.dst_node_id}" for message in messages]

    def pull_messages(self, waiting: list[str]) -> list[Message]:
        said = {name: self.said[int(name[1:])] for name in waiting}
        return [self.reply(name, found) for name, found in said.items() if found is not None]

    def reply(self, to: str, said: Said) -> Message:
        about = Metadata(7, "r", 1, 1, to, "1", 0.0, 60.0, MessageType.TRAIN)
        if isinstance(said, Error):
            return Message(error=said, metadata=about)
        records = with_block("device", {**ABOUT, **(said or {})}, ONES)
        content = RecordDict({name: ConfigRecord(record) for name, record in records.items()})
        content["metrics"] = MetricRecord(METRICS)  # type: ignore[arg-type]
        return Message(content=content, metadata=about)


@pytest.fixture
def _in_a_server_app(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.mark.usefixtures("_in_a_server_app")
def test_a_nodes_key_is_that_of_one_device_and_other_nodes_are_left_alone(tmp_path: Path) -> None:
    """Node 2 answers under another name than it was registered for; node 3 is another task's."""
    for device, node in (("d0", 1), ("d1", 2)):
        entry = Node(device=device, public_key="k", node=str(node))
        write_atomic(tmp_path / "nodes" / device / "node.json", entry.encode())
    write_atomic(tmp_path / "nodes" / "d9" / "node.json", b"{")
    names = lambda: registered(tmp_path)  # noqa: E731
    grid = Grid({1: {"device": "d0"}, 2: {"device": "d0"}, 3: {"device": "d0"}})
    fleet = server_app.FlowerFleet(grid, registered=names)  # type: ignore[arg-type]
    assert fleet.nodes() == [1, 2]
    fleet.send("train", fleet.nodes(), work(), SENT, 60.0)
    first, second = fleet.receive()
    assert first.update is not None
    assert (second.update, second.device) == (None, "d1")
    assert second.refusal is not None
    assert second.refusal.reason == "node-key"
    assert second.refusal.detail == "'d0' comes with the key of d1"


@pytest.mark.usefixtures("_in_a_server_app")
def test_without_keys_a_node_of_another_task_is_asked_once() -> None:
    error = {"error": "wrong-task: have other version 1"}
    grid = Grid({1: {"device": "d0"}, 2: {"device": "x", **error}, 3: {"device": "d2"}})
    fleet = server_app.FlowerFleet(grid)  # type: ignore[arg-type]
    fleet.send("train", fleet.nodes(), work(), SENT, 60.0)
    assert [reply.error is None for reply in fleet.receive()] == [True, False, True]
    assert fleet.nodes() == [1, 3]


@pytest.mark.usefixtures("_in_a_server_app")
@pytest.mark.parametrize(("at_once", "groups"), [(1, [1, 1, 1]), (16, [2, 1]), (1000, [3])])
def test_few_large_replies_are_in_memory_at_a_time(
    monkeypatch: pytest.MonkeyPatch, at_once: int, groups: list[int]
) -> None:
    class Counting(Grid):
        def pull_messages(self, waiting: list[str]) -> list[Message]:
            asked.append(len(waiting))
            return super().pull_messages(waiting)

    monkeypatch.setattr(server_app, "AT_ONCE", at_once)
    asked: list[int] = []
    fleet = server_app.FlowerFleet(Counting({1: {}, 2: {}, 3: {}}))  # type: ignore[arg-type]
    fleet.send("train", fleet.nodes(), work(), SENT, 60.0)
    assert len(fleet.receive()) == 3
    assert asked == groups
    assert fleet.receive() == []
    fleet.send("evaluate", fleet.nodes(), work(), SENT, 60.0)
    assert len(fleet.receive()) == 3
    assert asked == [*groups, 3]  # an evaluation's reply has no weights


@pytest.mark.usefixtures("_in_a_server_app")
def test_a_reply_that_was_asked_for_beside_a_missing_one_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The grid gives a reply once. After the missing one no further node is asked about."""
    asked: list[str] = []

    class Once(Grid):
        def pull_messages(self, waiting: list[str]) -> list[Message]:
            asked.extend(waiting)
            found = super().pull_messages(waiting)
            self.said |= {int(name[1:]): None for name in waiting}
            return found

    monkeypatch.setattr(server_app, "AT_ONCE", 1)
    grid = Once({1: {"device": "d1"}, 2: None, 3: {"device": "d3"}, 4: {"device": "d4"}})
    fleet = server_app.FlowerFleet(grid)  # type: ignore[arg-type]
    fleet.send("train", fleet.nodes(), work(), SENT, 60.0)
    assert [reply.device for reply in fleet.receive()] == ["d1", "d3"]
    assert sorted(asked) == ["m1", "m2", "m3"]
    assert [reply.device for reply in fleet.receive()] == ["d4"]


def test_flowers_grid_asks_soon_for_a_reply_that_a_device_is_still_sending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The message, which is sent last, is asked for until it is there, and only then its parts."""
    monkeypatch.setattr(http_grid, "pull_objects", pull_objects)  # put back after the test
    server_app.ask_sooner()
    assert "pull_objects" in http_grid.HttpGrid.pull_messages.__code__.co_names
    asked: list[str] = []

    def pull(part: str) -> bytes:
        asked.append(part)
        if asked in (["message"], ["message", "message"]):
            raise ObjectUnavailableError(part)
        return part.encode()

    began = time.monotonic()
    found = vars(http_grid)["pull_objects"](object_ids=["a", "b", "message"], pull_object_fn=pull)
    assert time.monotonic() - began < 0.9  # Flower's own first pause is a second
    assert found == {name: name.encode() for name in ("message", "a", "b")}
    assert asked[:3] == ["message"] * 3


@pytest.mark.usefixtures("_in_a_server_app")
def test_every_node_is_answered_for_by_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "POLL_S", 0.01)
    monkeypatch.setattr(collector, "TTL_SPARE_S", 1.0)
    grid = Grid({3: None, 1: {}, 2: Error(5, "node unavailable")})
    fleet = server_app.FlowerFleet(grid)  # type: ignore[arg-type]
    gathering = collector.Collector(fleet, collector.Policy())
    answers = gathering.train(fleet.nodes(), work(limit_s=0.2), SENT, deadline_s=0.2)
    by_node = {answer.node: answer for answer in answers}
    assert sorted(by_node) == [1, 2, 3]
    assert by_node[1].update is not None
    assert by_node[2].error == "Flower error 5: node unavailable"
    assert (by_node[3].error or "").startswith("no reply within")
    assert {message.metadata.message_type for message in grid.sent} == {"train"}
    assert [message.metadata.ttl for message in grid.sent] == [1.2] * 3
    assert gathering.free(fleet.nodes()) == [1, 2]
    sent = grid.sent[0].content.config_records["work"]
    assert (sent["base"], sent["seed"], sent["epochs"]) == ("1-a", 3, 1)
