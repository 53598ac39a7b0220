"""A bad version behind the gate, on a whole fleet: the canary's real windows, scored by a real
worker, take it back, and nobody serves it in the end. A real browser watches the fleet afterwards,
through an outage of the broker."""

import json
import re
import signal
import urllib.request
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect

from compose.launcher.state_dir import StateDir
from examples.drift.bad_candidates import offer, weights_of
from federation.registry.registry import Registry
from streams.contract.task import load_task
from streams.runtime.trust import load_private_key
from tests.compose.console.browser import Visit, chromium
from tests.rig.processes.fleet import Place, Running, check_account, until
from tests.streams.batch.support import good_rows, write_parquet

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
@pytest.mark.timeout(1200)
def test_a_version_that_answers_one_class_is_taken_back_by_its_canarys_windows(
    kafka_place: Place,
) -> None:
    """The console of the fleet is live, and outlives the broker."""
    place, path = kafka_place, kafka_place.folder / "other.py"
    path.write_text(STEADY.format(tiny=place.task))
    words = [f"{path}:task", "--state", place.state, "--json", "--devices", "3"]
    running = place.start("up", "up", *words, "--speed", "30", "--stages", "0.3,1")
    running.until_said("3 serve 1-", 150)

    def stored() -> int:
        rows = place.rows('select count(distinct (device, "window")) from scores')
        return int(rows[0][0]) if rows else 0

    until(lambda: stored() > PAST, "there is a past to compare with")
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
    check_console(place, running)
    running.signal(signal.SIGINT)
    assert running.ends(120) == 0, running.told
    place.nothing_is_left()
    summary = running.summary()
    check_account(place, summary)
    assert {line["active"] for line in summary["devices"]} == {base.model}
    answered = place.rows(f"select count(distinct device) from scores where model = '{bad}'")
    assert answered == [(1,)]  # nobody but the canary has ever answered with it
    assert summary["restarts"].get("console") is None


KAFKA = ("kafka.Kafka",)


def api(address: str, name: str) -> Any:
    with urllib.request.urlopen(f"{address}/api/{name}", timeout=10) as answer:
        return json.load(answer)


def windows(text: str) -> int:
    found = re.search(r"([\d,]+)\s+windows closed", text)
    return int(found[1].replace(",", "")) if found else 0


def history(place: Place, task: str) -> None:
    """Queue a job over stored segments, and run it."""
    stored = write_parquet(place.folder / "stored.parquet", good_rows(60))
    words = ["score", task, stored, "--id", "event"]
    to = ["--to", place.folder / "history", "--state", place.state, "--detach"]
    assert place.tidewheel(*words, *to).strip()
    place.tidewheel("jobs", "run", "--until-empty", "--state", place.state)
    found = json.loads((place.folder / "history" / "_manifest.json").read_text())
    assert (found["state"], found["errors"]) == ("Completed", {})
    assert found["succeeded"] == 60


def look_around(visit: Visit) -> None:
    """Every page shows the loop that runs."""
    for path, words in (
        ("/fleet", ("3 of 3 devices", "d0", "d1", "d2")),
        ("/devices/d0", ("balances", "produced", "Newest windows")),
        ("/learning", ("By round",)),
        ("/releases", ("All devices serve 1-", "signed by key")),
        ("/quality", ("every message of events could be decoded",)),
        ("/jobs", ("No job yet",)),
    ):
        visit.open(path)
        visit.until(lambda text, w=words: all(x in text for x in w), f"{words} on {path}")
        assert visit.wrong == [], path


def check_console(place: Place, running: Running) -> None:
    """Without a reload the numbers grow; while no broker answers the page says so, and goes on."""
    with chromium() as browser:
        address = re.findall(r"console   (http://\S+)", running.said)[0]
        until(lambda: answers(address), "the console answers")
        visit = Visit(browser, address)
        page = visit.open("/")
        page.evaluate("window.before = 'not reloaded'")
        visit.until(lambda text: windows(text) > 3, "windows are shown", 90)
        seen = windows(visit.text())
        visit.until(lambda text: windows(text) > seen, "more windows, without a reload")
        look_around(visit)
        history(place, f"{place.folder / 'other.py'}:task")
        visit.open("/jobs")
        visit.until(lambda text: "history.job" in text and "Completed" in text, "the job is there")
        page = visit.open("/")
        page.evaluate("window.before = 'not reloaded'")
        place.kill(*KAFKA)
        visit.until(lambda text: "No broker answers at 127.0.0.1" in text, "the outage is said")
        visit.until(lambda text: "No broker answers" not in text, "the broker is back", 90)
        seen = windows(visit.text())
        visit.until(lambda text: windows(text) > seen, "more windows after the outage", 90)
        assert page.evaluate("window.before") == "not reloaded"
        found = api(address, "status")
        assert sorted(state["device"] for state in found["devices"]) == ["d0", "d1", "d2"]
        expect(page.locator(".back .version").first).to_be_visible()
        visit.close()


def answers(address: str) -> bool:
    try:
        return bool(api(address, "status"))
    except OSError:
        return False
