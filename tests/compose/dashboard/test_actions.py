"""An action does what was shown, as the command line does it, or nothing."""

import logging
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from compose.dashboard.web.actions import Actions, Plan
from compose.dashboard.web.settings import ConsoleSettings
from compose.launcher.state_dir import StateDir
from federation.registry.registry import Registry
from streams.contract.documents import RoundEvent
from streams.contract.errors import TidewheelError, UsageError
from streams.contract.task import load_task
from streams.contract.topics import DEAD_LETTERS, EVENTS, ROUNDS, topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from streams.runtime.key_files import create_key
from tests.fakes.own_task import own_task
from tests.federation.registries import model, offer, serve

TINY = Path(__file__).parents[2] / "fakes" / "tiny_task.py"


class Rig:
    """A registry with two versions, the second one offered."""

    def __init__(self, folder: Path) -> None:
        layout = StateDir(folder)
        key = create_key(layout.signing_key)
        self.registry = Registry(layout.registry, "tiny", 1, [key.public_key()])
        self.first, self.second = (model(self.registry, n, key) for n in (1, 2))
        serve(self.registry, self.first, key)
        offer(self.registry, self.second, key)
        self.key = key
        settings = ConsoleSettings(BrokerSettings(bootstrap="127.0.0.1:1"), folder)
        self.actions = Actions(settings, load_task(f"{TINY}:task"))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_rollback_is_shown_first_and_then_signed_with_its_reason(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    before = len(rig.registry.decisions())
    plan = rig.actions.roll_back()
    assert plan.possible
    assert plan.text.startswith(f"{rig.second.model} is withdrawn, {rig.first.model} stays")
    assert "up to 6 devices" in plan.text
    assert len(rig.registry.decisions()) == before
    with caplog.at_level(logging.INFO):
        said = plan.do("late answers")
    last = rig.registry.decisions()[-1]
    assert (last.kind, last.reason) == ("rolled-back", "by hand: console: late answers")
    assert said.startswith(f"decision {last.seq}: ")
    assert "action rollback: decision" in caplog.text


def test_a_promotion_is_shown_first_and_then_made(rig: Rig) -> None:
    plan = rig.actions.promote(rig.second.model)
    assert plan.text.startswith(f"{rig.second.model} is served by all devices")
    plan.do("")
    assert rig.registry.desired().stable == rig.second
    assert rig.registry.decisions()[-1].reason == "by hand: console"


def test_a_rollout_is_paused_and_resumed_as_shown(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    plan = rig.actions.pause()
    assert plan.possible
    assert plan.text.startswith(f"{rig.second.model} stays at stage 1, 5.0% of the fleet")
    assert "no device changes" in plan.text
    assert "devices of the task's fleet change" not in plan.text
    assert rig.registry.desired().paused is None
    with caplog.at_level(logging.INFO):
        plan.do("look first")
    paused = rig.registry.desired().paused
    assert paused is not None
    assert paused.reason == "by hand: console: look first"
    assert "action pause: decision 3" in caplog.text
    assert not rig.actions.pause().possible
    rig.actions.resume().do("")
    assert rig.registry.desired().paused is None
    assert rig.registry.decisions()[-1].reason == "by hand: console"
    assert not rig.actions.resume().possible


def test_a_stage_that_began_since_it_was_shown_is_not_paused(rig: Rig) -> None:
    plan = rig.actions.pause()
    after = rig.registry.desired().model_copy(update={"stage": 2, "share": 0.25})
    rig.registry.decide(rig.key, "stage", after, rig.registry.last(), model=rig.second.model)
    with pytest.raises(UsageError, match="something else would change now"):
        plan.do("look first")
    assert rig.registry.desired().paused is None


def test_what_has_changed_since_it_was_shown_is_not_done(rig: Rig) -> None:
    plan = rig.actions.roll_back()
    serve(rig.registry, rig.second, rig.key)
    with pytest.raises(UsageError, match="something else would change now"):
        plan.do("late")
    assert rig.registry.desired().stable == rig.second


def test_where_nothing_is_to_be_done_that_is_said(rig: Rig) -> None:
    serve(rig.registry, rig.first, rig.key)
    plan = rig.actions.promote(rig.first.model)
    assert not plan.possible
    assert "nothing to do" in plan.text


@pytest.mark.parametrize(
    "plan", [lambda a: a.promote("9-99999999"), lambda a: a.promote("../../etc/passwd")]
)
def test_a_version_that_is_not_there_is_an_error_in_one_line(
    rig: Rig, plan: Callable[[Actions], Plan]
) -> None:
    with pytest.raises(TidewheelError) as found:
        plan(rig.actions)
    assert "\n" not in str(found.value)


def test_a_dead_letter_is_sent_again_and_a_run_requested_as_by_the_command_line(
    embedded: BrokerSettings, tmp_path: Path
) -> None:
    task = load_task(own_task(tmp_path))
    ensure_topics(embedded, topic_specs(task.name))
    with closing(Producer(embedded)) as producer:
        headers = [("reason", b"bad-arrow"), ("original-schema", b"events/1")]
        producer.put(topic_name(task.name, DEAD_LETTERS), b"d0", b"value", headers)
    actions = Actions(ConsoleSettings(embedded, tmp_path), task)
    assert "1 dead letters sent" in actions.replay([0]).do("")
    with pytest.raises(UsageError, match="no dead letter at offset 7"):
        actions.replay([7]).do("")
    actions.train().do("new phones")
    with closing(Reader(embedded, [topic_name(task.name, EVENTS)])) as reader:
        [again] = reader.read_to_end()
    assert (again.key, again.value) == (b"d0", b"value")
    with closing(Reader(embedded, [topic_name(task.name, ROUNDS)])) as reader:
        [asked] = [RoundEvent.decode(message.value) for message in reader.read_to_end()]
    assert (asked.kind, asked.reason) == ("asked", "by hand: console: new phones")


def test_without_a_broker_a_run_cannot_be_requested_and_that_is_said(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    plan = rig.actions.train()
    with pytest.raises(TidewheelError):
        plan.do("now")
    assert "action train failed" in caplog.text
