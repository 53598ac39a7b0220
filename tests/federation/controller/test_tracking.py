"""Runs in a real MLflow, a folder and a server: metrics by round, the promoted version and its
lineage; a server that does not answer delays nothing and is said once."""

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from compose.launcher.broker import free_ports
from federation.controller.tracking import Tracker
from streams.contract.decisions import ZERO, Decision, DesiredState, Ref
from streams.contract.documents import RoundEvent
from streams.contract.errors import UsageError
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.processes.polling import until
from tests.rig.servers.mlflow import mlflow_server

OLD, NEW = "1-aaaaaaaa", "2-bbbbbbbb"
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


def event(run: str, kind: Any, at_s: int = 1, **fields: Any) -> RoundEvent:
    return RoundEvent(run=run, kind=kind, time_us=at_s * 1_000_000, **fields)


def history(run: str, base: str, model: str | None, at_s: int) -> list[RoundEvent]:
    """A run of two rounds, promoted or refused."""
    found = [event(run, "started", at_s, rounds=2, base=base)]
    for number in (1, 2):
        at = at_s + 10 * number
        found += [event(run, "admitted", at, round=number, device=f"d{n}") for n in range(3)]
        found += [event(run, "refused", at, round=number, device="d9", reason="norm: 9 from it")]
        figures = {"accuracy": 0.7 + 0.1 * number, "class-walk (slow)": 0.5}
        found += [event(run, "aggregated", at, round=number)]
        found += [event(run, "evaluated", at, round=number, metrics=figures)]
    kind = "promoted" if model else "rejected"
    found += [event(run, kind, at_s + 30, base=base, model=model, reason="0.9 from 0.7")]
    return [*found, event(run, "finished", at_s + 31)]


def decision(model: str) -> Decision:
    return Decision(
        task="tiny", task_version=1, seq=3, prev=ZERO, kind="served", model=model, time_us=1,
        reason="canary passed", key="0" * 16,
        standing=DesiredState(stable=Ref(model=model, digest="a" * 64, size=9)),
    )  # fmt: skip


def runs_of(uri: str) -> tuple[Any, dict[str, Any]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(f"tidewheel/{tiny.id}")
    found = client.search_runs([experiment.experiment_id])
    return client, {run.data.tags["tidewheel.run"]: run for run in found}


STEPS = [*history("7", OLD, NEW, 100), decision(NEW), *history("8", NEW, None, 200)]


def check_written(uri: str, tracker: Tracker) -> None:
    """MLflow gets what the tracker has been given, STEPS: metrics by round, the promoted version
    and its lineage; and the third run from another tracker."""
    until(lambda: not tracker.waiting, "all steps are written")
    tracker.stop()
    client, runs = runs_of(uri)
    assert runs.keys() == {"7", "8"}
    first, second = runs["7"], runs["8"]
    scores = client.get_metric_history(first.info.run_id, "accuracy")
    assert [(m.step, round(m.value, 3), m.timestamp) for m in scores] == [
        (1, 0.8, 110_000), (2, 0.9, 120_000),
    ]  # fmt: skip
    admitted = client.get_metric_history(first.info.run_id, "admitted")
    assert [(m.step, m.value) for m in admitted] == [(1, 3.0), (2, 3.0)]
    assert "class-walk _slow_" in first.data.metrics
    tags = {name.removeprefix("tidewheel."): value for name, value in first.data.tags.items()}
    assert (tags["outcome"], tags["model"], tags["base"]) == (
        "promoted",
        NEW,
        OLD,
    )
    assert (tags["release"], tags["release_reason"]) == ("served", "canary passed")
    assert (first.info.status, first.info.start_time, first.info.end_time) == (
        "FINISHED", 100_000, 131_000,
    )  # fmt: skip
    assert second.data.tags["tidewheel.outcome"] == "rejected"
    tracker = Tracker(uri, tiny)  # another controller continues
    tracker.start()
    for step in history("9", NEW, "3-cccccccc", 300):
        tracker.take(step)
    until(lambda: not tracker.waiting, "the third run is written")
    tracker.stop()
    _, runs = runs_of(uri)
    assert runs["9"].data.tags["tidewheel.base_run"] == first.info.run_id


def test_a_folder_gets_the_runs(tmp_path: Path) -> None:
    uri = (tmp_path / "runs").as_uri()
    tracker = Tracker(uri, tiny)
    tracker.start()
    for step in STEPS:
        tracker.take(step)
    check_written(uri, tracker)


def test_a_server_that_does_not_answer_delays_nothing_and_is_said_once(
    tmp_path: Path, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "federation.controller.tracking")
    tracker = Tracker(f"http://127.0.0.1:{port}", tiny, retry_s=0.2)
    tracker.start()
    began = time.monotonic()
    for step in STEPS:
        tracker.take(step)
    assert time.monotonic() - began < 0.5
    until(lambda: len(caplog.records) > 0, "it is said")
    with mlflow_server(tmp_path / "server", port) as uri:
        check_written(uri, tracker)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2, said
    assert said[0].startswith(f"MLflow at http://127.0.0.1:{port} does not take runs: ")
    assert said[1].endswith("answers again")


def test_what_is_not_written_at_the_end_is_counted(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(f"http://127.0.0.1:{port}", tiny)
    tracker.start()
    for step in STEPS:
        tracker.take(step)
    until(lambda: len(caplog.records) > 0, "it is said")
    tracker.stop()
    assert f"{len(STEPS)} steps were not written" in caplog.records[-1].getMessage()


def test_an_address_of_another_kind_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"^--mlflow nowhere://x: [^\n]+$"):
        Tracker("nowhere://x", tiny)


def test_a_password_in_the_address_is_refused() -> None:
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_TOKEN"):
        Tracker("https://me:secret@mlflow.example/", tiny)
