"""A run that dies at any step, and the run that goes on with it: the result is an undisturbed
run's, bit for bit."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.admission import Tensors, Update
from federation.registry.registry import Registry
from federation.rounds import checkpoint
from federation.rounds.collector import Reply
from federation.rounds.event_log import why_failed
from federation.rounds.run import FederatedRun
from streams.contract.artifact import WEIGHTS, Artifact
from streams.contract.errors import BrokerUnavailable, ProcessFailed
from streams.contract.task import Task
from streams.contract.work import Op, Work
from streams.runtime.failpoints import Failpoint, unarmed
from tests.federation.rounds import test_run
from tests.federation.rounds.test_run import FakeFleet, compared
from tests.rig.made_up.killed import Killed, killed_at
from tests.rig.unwrap import unwrap

ROUNDS = 3
IN_ROUNDS = [(f"round-step-{n}", time) for n in (2, 3, 4, 5) for time in (1, 2, 3)]
STEPS = [("round-step-1", 1), *IN_ROUNDS, *((f"round-step-{n}", 1) for n in (6, 7, 8))]


def learner(name: str, scale: float = 0.001) -> Callable[[Op, Work, Tensors], Update]:
    """Trains by chance, as its seed says; finds what was averaged better than the base."""

    def answer(op: Op, work: Work, weights: Tensors) -> Update:
        noise = np.random.default_rng([work.seed, *name.encode()])
        moved = {
            key: (value + scale * noise.standard_normal(value.shape)).astype(value.dtype)
            for key, value in weights.items()
        }
        tensors = moved if op == "train" else {}
        metrics = {"correct": 50.0, "evaluated": 100.0}
        if op == "evaluate":
            metrics = compared(100, 50, 20)
        samples = int(noise.integers(20, 200))
        return Update(name, work.task, work.task_version, work.base, samples, tensors, metrics)

    return answer


def fleet() -> FakeFleet:
    """Three sound devices, one that leaps, and one that takes another's name."""
    devices = [learner("a"), learner("b"), learner("c"), learner("leaps", 5.0), learner("a")]
    return FakeFleet([*devices])


class Rig(test_run.Rig):
    """Runs of three rounds; none has the help of a controller."""

    def resumed(
        self,
        run: str,
        resume: str = "",
        *,
        devices: FakeFleet | None = None,
        failpoint: Failpoint = unarmed,
        **changes: object,
    ) -> FederatedRun:
        wanted = {"rounds": ROUNDS, "run": run, "resume": resume, **changes}
        made = self.run(devices or fleet(), **wanted)  # type: ignore[arg-type]
        return replace(made, failpoint=failpoint)

    def kill(self, run: str, point: str, time: int = 1, resume: str = "", **more: object) -> None:
        with pytest.raises(Killed):
            self.resumed(run, resume, failpoint=killed_at(point, time), **more).run()  # type: ignore[arg-type]
        assert "finished" not in self.kinds_of(run)

    def served(self) -> Artifact:
        return unwrap(self.registry.serving())

    def kinds_of(self, run: str) -> list[str]:
        return [event.kind for event in self.kafka.events if event.run == run]

    def forget(self, model: str) -> None:
        """Serve the first model again, as if nothing had been learned."""
        self.registry.serve(model, self.key, "a test")
        for other in self.registry.models():
            if other != model:
                (self.registry.folder / "models" / f"{other}.twa").unlink()
        self.kafka.messages.clear()


@pytest.fixture
def rig(tiny: Task, registry: Registry, key: Ed25519PrivateKey, tmp_path: Path) -> Rig:
    registry.store.remove("heldout.safetensors")  # steps by chance do the people held out no good
    return Rig(tiny, registry, key, tmp_path / "runs")


@pytest.fixture
def undisturbed(rig: Rig) -> Iterator[Artifact]:
    first = rig.served().model
    assert rig.resumed("whole").run().promote
    found = rig.served()
    rig.forget(first)
    return found


def check(rig: Rig, undisturbed: Artifact) -> None:
    """What is served, how often it was promoted, and what its manifest tells."""
    have, want = rig.served(), undisturbed
    assert have.files[WEIGHTS] == want.files[WEIGHTS]
    told = [(m.round, m.base, m.admitted, m.refused) for m in (have.manifest, want.manifest)]
    assert told[0] == told[1]
    assert have.manifest.metrics == want.manifest.metrics
    made = [d.model for d in rig.registry.decisions() if d.run]
    assert made[-1] == have.model
    assert len(made) == 2  # the undisturbed run's, and this one
    assert [e.model for e in rig.kafka.events if e.kind == "promoted"] == [have.model]


@pytest.mark.parametrize(("point", "time"), STEPS)
def test_a_run_that_dies_at_any_step_is_gone_on_with_to_the_same_result(
    rig: Rig, undisturbed: Artifact, point: str, time: int
) -> None:
    rig.kill("r1", point, time)
    verdict = rig.resumed("r2", "r1").run()
    assert verdict.promote
    check(rig, undisturbed)
    events = [event for event in rig.kafka.events if event.run == "r2"]
    assert {event.resumed_from for event in events} == {"r1"}
    assert events[-1].kind == "finished"
    trained = [e.round for e in events if e.kind == "started"]
    done = {"2": time - 1, "3": time - 1, "4": time, "5": time}.get(point[-1], ROUNDS)
    done = 0 if point == "round-step-1" else done
    assert trained == list(range(done + 1, ROUNDS + 1))


def test_a_checkpoint_that_is_damaged_costs_a_round(rig: Rig, undisturbed: Artifact) -> None:
    rig.kill("r1", "round-step-5", 2)
    newest = rig.runs / "r1" / "round-0002.safetensors"
    newest.write_bytes(newest.read_bytes().replace(b"norms", b"norme"))
    assert rig.resumed("r2", "r1").run().promote
    check(rig, undisturbed)
    (event,) = [event for event in rig.kafka.events if event.kind == "resumed"]
    assert (event.reason, event.round) == ("resumed after round 1 of run r1", 1)


def test_the_earlier_runs_settings_hold_but_for_waiting(rig: Rig, undisturbed: Artifact) -> None:
    rig.kill("r1", "round-step-4", 1)
    resumed = rig.resumed("r2", "r1", rounds=1, seed=9, epochs=7, margin=0.9, minimum_nodes=3)
    assert resumed.run().promote
    check(rig, undisturbed)
    assert resumed.settings.minimum_nodes == 3


def test_the_servers_own_state_goes_on(rig: Rig) -> None:
    rig.strategy = "fedadam"
    rig.kill("r1", "round-step-4", 2)
    rig.kill("r2", "round-step-1", resume="r1")
    before, after = (checkpoint.latest(rig.runs, run) for run in ("r1", "r2"))
    assert before is not None
    assert after is not None
    assert (after.about.round, after.about.strategy) == (2, "fedadam")
    assert after.server
    assert after.server.keys() == before.server.keys()
    assert all(np.array_equal(after.server[name], before.server[name]) for name in before.server)


def test_a_run_by_another_strategy_is_begun_anew(rig: Rig) -> None:
    rig.strategy = "fedadam"
    rig.kill("r1", "round-step-4", 1)
    rig.strategy = "median"
    rig.resumed("r2", "r1").run()
    (why,) = [e.reason for e in rig.kafka.events if e.run == "r2" and "starting over" in e.reason]
    assert why.startswith("run r1 used fedadam, this one uses median")


def test_restarted_nodes_are_known_by_their_names_again(rig: Rig, undisturbed: Artifact) -> None:
    """All nodes have other numbers after the restart, in the middle of the run and at its gate."""
    sound = [learner("a"), learner("b"), learner("c")]

    class Restarted(FakeFleet):
        def nodes(self) -> list[int]:
            return [node + 100 for node in super().nodes()]

        def send(self, op: Op, nodes: Sequence[int], *rest: object) -> None:  # type: ignore[override]
            super().send(op, [node - 100 for node in nodes], *rest)  # type: ignore[arg-type]

        def receive(self) -> list[Reply]:
            return [replace(answer, node=answer.node + 100) for answer in super().receive()]

    for run, (point, time) in {"r1": ("round-step-4", 2), "r2": ("round-step-6", 1)}.items():
        first = rig.served().model
        rig.kill(run, point, time, devices=FakeFleet([*sound]))
        assert rig.resumed(f"{run}-on", run, devices=Restarted([*sound])).run().promote
        last = [e for e in rig.kafka.events if e.kind == "evaluated"][-1]
        assert last.metrics["devices_segments"] == 300
        assert rig.kinds_of(f"{run}-on").count("refused") == 0
        rig.forget(first)


def test_a_checkpoint_of_something_else_is_not_gone_on_from(rig: Rig) -> None:
    rig.kill("r1", "round-step-4")
    found = unwrap(checkpoint.latest(rig.runs, "r1"))
    about = found.about

    def other(**changes: object) -> checkpoint.Checkpoint:
        return replace(found, about=about.replace(**changes))

    said = {
        "none": (None, "run none has no valid checkpoint"),
        "task": (other(task="har"), "was of har"),
        "version": (other(task_version=9), "version 9"),
        "base": (other(base="1-0"), "started from 1-0"),
        "weights": (replace(found, weights={"w": np.zeros(1)}), "do not fit"),
        "setting": (other(settings=about.settings.replace(rounds="2")), "no valid"),
    }  # fmt: skip
    for run, (kept, reason) in said.items():
        if kept is not None:
            moved = kept.about.replace(run=run)
            checkpoint.save(rig.runs, replace(kept, about=moved))
        rig.kill(f"{run}-on", "round-step-1", resume=run)
        (event,) = [event for event in rig.kafka.events if event.run == f"{run}-on"][:-1]
        assert (event.kind, event.resumed_from) == ("failed", "")
        assert reason in event.reason
        assert event.reason.endswith(": starting over")
        anew = unwrap(checkpoint.latest(rig.runs, f"{run}-on"))
        assert anew.about.round == 0
        assert set(anew.about.counts.values()) == {0}


def test_what_would_come_again_ends_a_run_and_what_may_pass_does_not(rig: Rig) -> None:
    def failing(error: BaseException) -> Failpoint:
        def reached(_point: str) -> None:
            raise error

        return reached

    errors = [ProcessFailed("too few"), BrokerUnavailable("away"), OSError("reset"), SystemExit(1)]
    for number, error in enumerate(errors):
        with pytest.raises(type(error)):
            rig.resumed(f"e{number}", failpoint=failing(error)).run()
    whys = [why_failed(rig.runs / f"e{number}") for number in range(4)]
    assert [(why or "").partition(":")[0] for why in whys] == [
        "too few", *["the run was interrupted"] * 2, "the run was stopped"
    ]  # fmt: skip
    last = [rig.kinds_of(f"e{number}")[-1] for number in range(4)]
    assert last == ["finished", "failed", "failed", "failed"]
    assert "interrupted: OSError('reset')" in rig.kafka.events[-2].reason
    assert rig.kafka.events[-1].reason.startswith("the run was stopped: by `flwr stop`")
