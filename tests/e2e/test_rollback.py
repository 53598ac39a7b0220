"""A bad version behind the gate, on a whole fleet: the canary's real windows, scored by a real
worker, take it back, and nobody serves it in the end."""

import signal

import numpy as np
import pytest

from compose.launcher.state_dir import StateDir
from examples.drift.bad_candidates import offer, weights_of
from federation.registry.registry import Registry
from streams.contract.task import load_task
from streams.runtime.key_files import load_private_key
from tests.e2e.support import Place, check_account, until

# Nothing but a person starts a run: what is judged is the version that the test offers. The first
# model has learned from machines as they are in the field, so that there is much to lose.
STEADY = """
from dataclasses import replace
from tidewheel import load_task
tiny = load_task("{tiny}")

def devices():
    field = ("lab-1", "lab-2")
    return [replace(d, role="pilot" if d.name in field else d.role) for d in tiny.devices()]

task = replace(tiny, name="steady", retrain=0.0, devices=devices)
"""
PAST = 40  # windows before it is offered


@pytest.mark.kafka
@pytest.mark.timeout(400)
def test_a_version_that_answers_one_class_is_taken_back_by_its_canarys_windows(
    kafka_place: Place,
) -> None:
    place, path = kafka_place, kafka_place.folder / "other.py"
    path.write_text(STEADY.format(tiny=place.task))
    words = [f"{path}:task", "--state", place.state, "--json", "--devices", "3"]
    running = place.start("up", "up", *words, "--speed", "30", "--stages", "0.3,1")
    running.until_said("3 serve 1-", 150)

    def windows() -> int:
        rows = place.rows('select count(distinct (device, "window")) from scores')
        return int(rows[0][0]) if rows else 0

    until(lambda: windows() > PAST, "there is a past to compare with")
    layout = StateDir(place.state)
    key, task = load_private_key(layout.signing_key), load_task(f"{path}:task")
    registry = Registry(layout.registry, task.name, task.version, [key.public_key()])
    base = registry.serving()
    assert base is not None
    weights = weights_of(base)
    weights["4.bias"] = weights["4.bias"] + np.array([100, 0, 0], np.float32)
    offered = offer(registry, key, base, weights, "a test")
    bad = offered.decision.model

    def decided() -> list[str]:
        return [d.kind for d in registry.decisions() if d.model == bad]

    until(lambda: decided()[-1] in ("rolled-back", "served"), "it is judged", 180)
    assert decided() == ["candidate", "stage", "rolled-back"]
    last = [d for d in registry.decisions() if d.model == bad][-1]
    assert last.reason.startswith("canary failed: 1 device, ")
    assert last.evidence["value"] < last.evidence["expected"] - 0.1
    running.until_said(f"{bad} is rolled back", 60)
    running.until_said(f"3 serve {base.model}", 60)
    running.signal(signal.SIGINT)
    assert running.ends(120) == 0, running.told
    place.nothing_is_left()
    summary = running.summary()
    check_account(place, summary)
    assert {line["last"] for line in summary["devices"]} == {base.model}
    answered = place.rows(f"select count(distinct device) from scores where model = '{bad}'")
    assert answered == [(1,)]  # nobody but the canary has ever answered with it
