"""A candidate moves from a few devices to all, or back: by what the windows say, one decision after
the other, whoever makes the next one."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from federation.registry.registry import Registry, Stale
from federation.rollout import rollout as rollout_module
from federation.rollout.rollout import Plan, Rollout
from federation.rollout.stage_policy import StageRules, StageVerdict
from federation.rollout.window_history import WindowHistory
from streams.contract.decisions import Decision, rollout_position
from streams.contract.window_report import ClassAgreement, ModelWindow
from streams.fleet.view import FleetView
from tests.rig.made_up.documents import device_state, window_report
from tests.rig.made_up.registries import OLD as KEY
from tests.rig.made_up.registries import model, wait
from tests.rig.unwrap import unwrap


@dataclass
class Rig:
    registry: Registry
    fleet: FleetView = field(default_factory=lambda: FleetView("tiny.v1"))
    windows: WindowHistory = field(default_factory=WindowHistory)
    now: float = field(default_factory=lambda: time.time() + 5)  # decisions are made by now
    plan: Plan = field(default_factory=lambda: Plan(rules=StageRules(minimum_windows=2)))

    def __post_init__(self) -> None:
        self.stable = model(self.registry, 1).model
        self.registry.serve(self.stable, KEY, "the first")
        self.rollout = self.another()
        self.reported = 0

    def another(self) -> Rollout:
        """As a restart makes it."""
        return Rollout(self.registry, KEY, self.plan, lambda: self.now)

    def devices(self, count: int, **more: object) -> list[str]:
        names = [f"d{i}" for i in range(count)]
        for name in names:
            about = {"active": self.stable, "time_us": int(self.now * 1e6), **more}
            self.fleet.hear(device_state(name, **about))
        return sorted(names, key=lambda d: rollout_position("tiny.v1", d))

    def candidate(self, number: int = 2, base: str | None = None) -> str:
        made = model(self.registry, number, base=base or self.stable)
        wait(self.registry, made)
        return made.model

    def step(self) -> Decision | None:
        last = unwrap(self.registry.last())
        made = self.rollout.step(last, self.fleet, self.windows)
        return None if made is None else made.decision

    def report(self, device: str, model: str, agreeing: int, count: int = 1) -> None:
        for _ in range(count):
            self.reported += 1
            self.now += 1
            classes = {"slow": ClassAgreement(events=20, agreeing=agreeing)}
            part = ModelWindow(events=20, compared=20, agreeing=agreeing, classes=classes)
            report = window_report(device, self.reported * 10, {model: part})
            self.windows.add(report, int(self.now * 1e6))

    def past(self, devices: list[str]) -> None:
        for device in devices:
            self.report(device, self.stable, 15, 30)
        self.devices(len(devices))  # they are still there

    def kinds(self) -> list[str]:
        return [d.kind for d in self.registry.decisions()]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(Registry(tmp_path / "registry", "tiny", 1, [KEY.public_key()]))


def test_a_better_candidate_goes_by_stages_to_all(rig: Rig) -> None:
    order = rig.devices(12)
    rig.past(order)
    model = rig.candidate()
    seen = []
    while (standing := rig.registry.desired()).stable is None or standing.stable.model != model:
        made = rig.step()
        if made is not None:
            seen.append((made.kind, made.standing.stage))
            continue
        canary = [d for d in order if rollout_position("tiny.v1", d) < standing.share]
        for device in order:
            better = device in canary
            rig.report(device, model if better else rig.stable, 19 if better else 15)
        rig.devices(12)
        assert rig.reported < 5000
    assert seen == [("stage", 1), ("stage", 2), ("stage", 3), ("served", 0)]
    stages = [d for d in rig.registry.decisions() if d.kind == "stage"]
    places = [rollout_position("tiny.v1", device) for device in order]
    offered = [sum(place < s.standing.share for place in places) for s in stages]
    assert offered == [1, 3, 12]  # 5 % of 12 devices is one of them
    assert all(s.evidence["bound_worse"] == 20 for s in stages)
    assert all(s.standing.stable.model == rig.stable for s in stages if s.standing.stable)
    last = rig.registry.decisions()[-1]
    assert last.evidence["e_fine"] >= 20
    assert "canary passed: 1 device, 4 windows, agreement with the teacher 0.950" in last.reason
    assert rig.step() is None


def test_a_worse_candidate_goes_back_everywhere(rig: Rig) -> None:
    order = rig.devices(12)
    rig.past(order)
    model = rig.candidate()
    assert rig.step() is not None
    for device in order:
        rig.report(device, model if device == order[0] else rig.stable, 15)
    for _ in range(2):
        rig.report(order[0], model, 4)
    made = unwrap(rig.step())
    assert (made.kind, made.model) == ("rolled-back", model)
    assert made.standing.offered is None
    assert made.standing.stable is not None
    assert made.standing.stable.model == rig.stable
    assert list(made.standing.withdrawn) == [model]
    assert made.evidence["e_worse"] >= 20
    assert (rig.fleet.evidence.version, rig.fleet.evidence.words) == (model, made.reason)
    assert rig.fleet.evidence.odds[-1].worse >= 20
    assert rig.step() is None


def test_a_device_that_goes_back_by_itself_is_evidence(rig: Rig) -> None:
    order = rig.devices(6)
    model = rig.candidate()
    rig.step()
    rig.devices(6, refused={model: "withdrawn: of another time"})
    assert rig.step() is None
    state = rig.fleet.devices[order[0]]
    crashed = {model: "crashed: 3 times within 600 s"}
    rig.fleet.hear(state.replace(refused=crashed))
    made = unwrap(rig.step())
    assert made.kind == "rolled-back"
    assert "crashed: 3 times" in made.reason


def previous(model: str, base: str) -> dict[str, object]:
    """A device keeps an earlier version."""
    return {"origin": "previous", "model": f"{base}.k{model}", "base": base, "segments": 40,
            "loss": 0.1, "base_loss": 0.4, "answers": True,
            "made_us": 1, "since_us": 1}  # fmt: skip


def test_a_version_that_many_devices_decline_is_taken_back(rig: Rig) -> None:
    first, second = rig.stable, model(rig.registry, 2).model
    rig.registry.serve(second, KEY, "by its canary")
    kept = previous(first, second)
    rig.devices(6, active=second)
    rig.devices(2, active=second, challenger=kept)
    assert rig.step() is None  # two of six
    for other in ({"base": "3-aaaaaaaa"}, {"origin": "copy"}, {"answers": False}):
        rig.devices(3, active=second, challenger={**kept, **other})
        assert rig.step() is None
    rig.devices(3, active=second, challenger=kept)
    made = unwrap(rig.step())
    assert (made.kind, made.model) == ("rolled-back", second)
    assert made.reason == (
        f"3 of 6 devices keep an earlier version, which is better there; {first} is served again"
    )
    assert made.standing.stable is not None
    assert made.standing.stable.model == first
    assert second in made.standing.withdrawn
    rig.devices(6, active=first)
    assert rig.step() is None


def test_the_first_version_is_not_taken_back(rig: Rig) -> None:
    rig.devices(6, challenger=previous("9-aaaaaaaa", rig.stable))
    assert rig.step() is None


def test_a_stage_that_would_add_nobody_is_left_out(rig: Rig) -> None:
    rig.plan = Plan((0.05, 0.25, 0.5, 1.0), StageRules(minimum_windows=1))
    rig.rollout = rig.another()
    order = rig.devices(3)
    rig.past(order)
    model = rig.candidate()
    stages = []
    for _ in range(200):
        made = rig.step()
        if made is not None:
            stages.append((made.kind, made.standing.stage))
        if made is not None and made.kind == "served":
            break
        for device in order:
            rig.report(device, model, 19)
        rig.devices(3)
    # 1 of 3 devices; 25 % is the same one; 50 % are two; then all
    assert stages == [("stage", 1), ("stage", 3), ("stage", 4), ("served", 0)]


def test_nothing_is_offered_while_no_device_is_there(rig: Rig) -> None:
    rig.candidate()
    assert rig.step() is None
    rig.devices(2)
    rig.now += 3600
    assert rig.step() is None  # heard of too long ago
    rig.devices(2, phase="stopped")
    assert rig.step() is None
    rig.devices(2)
    assert rig.step() is not None


def test_an_undecided_stage_is_held_once_and_may_still_pass(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = iter(["hold", "hold", "wait", "go-on", "go-on"])
    monkeypatch.setattr(
        rollout_module,
        "evaluate",
        lambda *_, **__: StageVerdict(next(verdicts), "why", {"e_fine": 1.0, "e_worse": 1.0}),
    )  # type: ignore[arg-type]
    rig.devices(1)
    rig.candidate()
    made = [rig.step() for _ in range(5)]
    assert [d.kind if d else None for d in made] == ["stage", "held", None, "stage", "served"]


@pytest.mark.parametrize("against", [False, True])
def test_an_undecided_canary_grows_while_its_windows_speak_for_the_version(
    rig: Rig, against: bool
) -> None:
    """A few devices can show too little for ever: 5 % of a small fleet is one."""
    order = rig.devices(5)
    rig.past(order)
    model = rig.candidate()
    offered = [unwrap(rig.step())]
    while offered[-1].kind == "stage":
        rig.now = offered[-1].time_us / 1e6 + 5
        for _ in range(3):
            for device in order:
                new = rollout_position("tiny.v1", device) < offered[-1].standing.share
                rig.report(device, model if new else rig.stable, 15 - (new and against))
        assert rig.step() is None
        rig.now = offered[-1].time_us / 1e6 + 6 * 3600 + 1
        rig.devices(5)
        offered.append(unwrap(rig.step()))
    places = [rollout_position("tiny.v1", device) for device in order]
    stages = [d.standing for d in offered]
    assert [(s.stage, sum(place < s.share for place in places)) for s in stages] == (
        [(1, 1), (1, 1)] if against else [(1, 1), (1, 2), (1, 3), (1, 3)]  # half of them
    )
    assert "canary undecided after 6.0 h" in offered[-1].reason


@pytest.mark.parametrize("gone", ["source ended", "silent"])
def test_a_stage_whose_devices_answer_no_more_is_offered_to_others_too(rig: Rig, gone: str) -> None:
    order = rig.devices(3)
    model = rig.candidate()
    first = unwrap(rig.step())
    rig.report(order[0], model, 15)

    def after(seconds: float) -> None:
        rig.now = first.time_us / 1e6 + seconds
        state = rig.fleet.devices[order[0]]
        rig.devices(3)
        if gone == "silent":  # as one that is switched off for hours, and may be back
            rig.fleet.devices[order[0]] = state
        else:
            rig.fleet.hear(rig.fleet.devices[order[0]].replace(phase=gone))

    patience_s = 60 if gone == "source ended" else 6 * 3600
    after(patience_s - 30)
    assert rig.step() is None
    after(patience_s + 1)
    made = unwrap(rig.step())
    assert (made.kind, made.standing.stage) == ("stage", first.standing.stage)
    offered = [d for d in order if rollout_position("tiny.v1", d) < made.standing.share]
    assert offered == order[:2]
    assert f"offered to 1 of 2 devices: no more answers of {order[0]}; canary" in made.reason
    assert made.evidence["windows"] == 1  # what was answered before still counts
    rig.now = made.time_us / 1e6 + 5
    assert rig.step() is None


def test_a_canary_waits_where_all_have_ended_until_one_answers_again(rig: Rig) -> None:
    order = rig.devices(2)
    rig.past(order)
    rig.candidate()
    assert unwrap(rig.step()).kind == "stage"
    rig.now += 61
    rig.devices(2, phase="source ended")
    held = unwrap(rig.step())
    assert (held.kind, rig.step()) == ("held", None)
    assert "have ended" in held.reason
    assert rig.fleet.evidence.words == held.reason
    rig.devices(2)
    made = unwrap(rig.step())
    assert (made.kind, made.standing.stage, made.standing.share) == (
        "stage", held.standing.stage, held.standing.share,
    )  # fmt: skip
    assert rig.step() is None


def test_a_candidate_takes_the_place_of_one_that_is_held_and_waits_for_one_that_is_not(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ["wait"]
    monkeypatch.setattr(
        rollout_module,
        "evaluate",
        lambda *_, **__: StageVerdict(said[0], "", {"e_fine": 1.0, "e_worse": 1.0}),
    )  # type: ignore[arg-type]
    rig.devices(3)
    first = rig.candidate(2)
    rig.step()
    second = rig.candidate(3)
    assert rig.step() is None
    said[0] = "hold"
    held = unwrap(rig.step())
    assert (held.kind, held.model) == ("held", first)
    back = unwrap(rig.step())
    assert (back.kind, back.model) == ("rolled-back", first)
    assert back.reason == f"replaced by {second}"
    begun = unwrap(rig.step())
    assert (begun.kind, begun.model) == ("stage", second)


def test_a_candidate_of_another_base_or_without_a_file_is_dropped(rig: Rig) -> None:
    rig.devices(2)
    model = rig.candidate(2, base="9-aaaaaaaa")
    made = unwrap(rig.step())
    assert (made.kind, made.model) == ("dropped", model)
    assert made.reason == f"its base is 9-aaaaaaaa, but {rig.stable} is served now"
    model = rig.candidate(3)
    rig.registry.store.remove(f"models/{model}.twa")
    made = unwrap(rig.step())
    assert (made.kind, made.model) == ("dropped", model)
    assert "no model" in made.reason
    assert rig.step() is None


def test_two_of_them_make_each_decision_once(rig: Rig) -> None:
    """Whoever comes second is told, and decides anew."""
    rig.devices(3)
    rig.candidate()
    other, last = rig.another(), rig.registry.last()
    assert last is not None
    assert rig.rollout.step(last, rig.fleet, rig.windows) is not None
    with pytest.raises(Stale):
        other.step(last, rig.fleet, rig.windows)
    assert rig.kinds() == ["served", "candidate", "stage"]
    after = unwrap(rig.registry.last())
    assert other.step(after, rig.fleet, rig.windows) is None
