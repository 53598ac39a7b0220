"""The ClientApp against a real agent's socket; Flower's processes are in test_flower."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import (
    ConfigRecord,
    Context,
    Message,
    MessageType,
    Metadata,
    RecordDict,
)

from edge_client.client_app import app
from federation.server_app import read_reply
from streams.contract.task import Task
from streams.contract.weights import payload
from streams.contract.work import with_block
from tests.rig.made_up.documents import work
from tests.rig.processes.stand_in_agent import StandInAgent


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tw-") as folder:
        yield Path(folder) / "agent.sock"


def weights(task: Task) -> dict[str, np.ndarray]:
    state = task.build_model().state_dict()
    return {name: tensor.numpy() for name, tensor in state.items()}


def message(task: Task, kind: str = MessageType.TRAIN, **changes: object) -> Message:
    block = payload.encode_weights(weights(task), "float32")
    records = with_block("work", {**work().fields(), **changes}, block)
    about = Metadata(7, "m1", 1, 5, "", "1", 0.0, 60.0, kind)
    content = RecordDict({name: ConfigRecord(record) for name, record in records.items()})
    return Message(content=content, metadata=about)


def context(path: Path | None) -> Context:
    config: dict[str, str | int | float | bool] = {"device": "d0"}
    if path is not None:
        config["socket"] = str(path)
    return Context(7, 5, config, RecordDict(), {})


def test_training_comes_back_as_an_update(tiny: Task, path: Path) -> None:
    with StandInAgent(tiny, "d0", path) as agent:
        update = read_reply(5, app(message(tiny), context(path)), weights(tiny)).update
    assert update is not None
    assert [request.op for request in agent.requests] == ["train"]
    assert agent.requests[0].seed == 3
    assert (update.device, update.base, update.task) == ("d0", "1-a", "tiny")
    assert update.samples == len(agent.y)
    assert update.metrics["evaluated"] == len(agent.held_y)
    assert {n: w.shape for n, w in update.weights.items()} == {
        n: w.shape for n, w in weights(tiny).items()
    }


def test_evaluating_comes_back_without_weights(tiny: Task, path: Path) -> None:
    with StandInAgent(tiny, "d0", path) as agent:
        reply = app(message(tiny, MessageType.EVALUATE), context(path))
    update = read_reply(5, reply, {}).update
    assert update is not None
    assert [request.op for request in agent.requests] == ["evaluate"]
    assert (update.weights, update.metrics["evaluated"]) == ({}, len(agent.held_y))


def test_a_device_without_its_agent_says_so(tiny: Task, path: Path) -> None:
    answer = read_reply(5, app(message(tiny), context(path)), weights(tiny))
    assert answer.device == "d0"
    assert "agent does not answer" in (answer.error or "")


def test_a_supernode_without_a_socket_says_what_to_do(tiny: Task) -> None:
    answer = read_reply(5, app(message(tiny), context(None)), {})
    assert "without socket=" in (answer.error or "")


def test_a_request_that_is_not_as_agreed_is_an_error_of_that_message(
    tiny: Task, path: Path
) -> None:
    with StandInAgent(tiny, "d0", path) as agent:
        answer = read_reply(5, app(message(tiny, epochs=0), context(path)), {})
    assert "epochs" in (answer.error or "")
    assert agent.requests == []
