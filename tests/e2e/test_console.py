"""The console of a running loop in a real browser: live, through an outage of the broker."""

import json
import re
import signal
import urllib.request
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.compose.console.browser import Visit, chromium
from tests.e2e.support import Place, until
from tests.streams.batch.support import good_rows, write_parquet

KAFKA = ("kafka.Kafka",)


def api(address: str, name: str) -> Any:
    with urllib.request.urlopen(f"{address}/api/{name}", timeout=10) as answer:
        return json.load(answer)


def windows(text: str) -> int:
    found = re.search(r"([\d,]+)\s+windows closed", text)
    return int(found[1].replace(",", "")) if found else 0


def history(place: Place) -> None:
    """Queue a job over stored segments; the runner of `up --jobs` takes it."""
    stored = write_parquet(place.folder / "stored.parquet", good_rows(60))
    words = ["score", place.task, stored, "--id", "event"]
    to = ["--to", place.folder / "history", "--state", place.state, "--detach"]
    assert place.tidewheel(*words, *to).strip()
    manifest = place.folder / "history" / "_manifest.json"
    until(manifest.exists, "the runner has run the job", 90)
    found = json.loads(manifest.read_text())
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


@pytest.mark.kafka
def test_the_console_of_up_is_live_and_outlives_the_broker(kafka_place: Place) -> None:
    """Without a reload the numbers grow; while no broker answers the page says so, and goes on."""
    with chromium() as browser:
        words = ("--devices", "3", "--speed", "30", "--jobs")
        running = kafka_place.start(
            "up", "up", kafka_place.task, "--state", kafka_place.state, "--json", *words
        )
        running.until_said("console   http://")
        address = re.findall(r"console   (http://\S+)", running.said)[0]
        until(lambda: answers(address), "the console answers")
        visit = Visit(browser, address)
        page = visit.open("/")
        page.evaluate("window.before = 'not reloaded'")
        visit.until(lambda text: windows(text) > 3, "windows are shown", 90)
        seen = windows(visit.text())
        visit.until(lambda text: windows(text) > seen, "more windows, without a reload")
        look_around(visit)
        history(kafka_place)
        visit.open("/jobs")
        visit.until(lambda text: "history.job" in text and "Completed" in text, "the job is there")
        page = visit.open("/")
        page.evaluate("window.before = 'not reloaded'")
        kafka_place.kill(*KAFKA)
        visit.until(lambda text: "No broker answers at 127.0.0.1" in text, "the outage is said")
        visit.until(lambda text: "No broker answers" not in text, "the broker is back", 90)
        seen = windows(visit.text())
        visit.until(lambda text: windows(text) > seen, "more windows after the outage", 90)
        assert page.evaluate("window.before") == "not reloaded"
        found = api(address, "status")
        assert sorted(state["device"] for state in found["devices"]) == ["d0", "d1", "d2"]
        expect(page.locator(".back .version").first).to_be_visible()
        visit.close()
        running.signal(signal.SIGINT)
        assert running.ends(120) == 0, running.told
        assert running.summary()["restarts"].get("console") is None
    kafka_place.nothing_is_left()


def answers(address: str) -> bool:
    try:
        return bool(api(address, "status"))
    except OSError:
        return False
