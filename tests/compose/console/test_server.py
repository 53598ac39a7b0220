"""Nobody but a browser at the console's own address gets an answer; JSON says what commands print;
as a process it waits for a broker, says what is wrong in one line, and ends cleanly."""

import asyncio
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from compose.console.learning import report_of
from compose.console.server import ConsoleSettings, make_console
from compose.console.watch import Moment, Watch
from compose.reports import dead_letters, status
from streams.contract.task import Task, load_task
from streams.contract.topics import topic_name, topic_specs
from streams.fleet.agreement import Odds
from streams.fleet.following import publish, read_view
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import Received
from streams.kafka.settings import BrokerSettings
from tests.compose.console.made_up import (
    CANARY,
    NOW_S,
    STABLE,
    FakeWatch,
    decision,
    device,
    fleet,
    letter,
    observed,
    report,
)  # fmt: skip
from tests.compose.messages import TASK
from tests.rig.made_up.own_task import own_task
from tests.rig.processes.polling import until

TINY = Path(__file__).parents[2] / "rig" / "made_up" / "tiny_task.py"
SEEN = observed(*fleet())
PAGES = ("/", "/fleet", "/devices/d3", "/learning", "/releases", "/quality?offset=0", "/jobs")


def settings(**fields: Any) -> ConsoleSettings:
    broker = BrokerSettings(bootstrap="k:1")
    return ConsoleSettings(broker, Path("/nowhere"), "t.py:task", **fields)


@dataclass
class Client:
    """Requests to an ASGI app, without a socket."""

    app: Any

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            base = "http://127.0.0.1:8750"
            async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)


def client(ready: bool = True, **fields: Any) -> Client:
    watch = FakeWatch(SEEN.history, (), NOW_S, ready).watch
    app = make_console(settings(**fields), load_task(f"{TINY}:task"), watch)
    return Client(app)


HOSTS = {
    "127.0.0.1:8750": 200, "localhost": 200, "[::1]:1": 200, "Console.Example:443": 200,
    "10.0.0.1:8750": 200, "[fd00::1]:1": 200, "evil.example": 421,
    "127.0.0.1.evil.example:8750": 421, "[evil": 421, "1": 421, "": 421,
}  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path", ["/jobs", "/api/status", "/live", "/static/console.js"])
def test_a_name_that_another_site_lets_lead_here_is_refused(host: str, path: str) -> None:
    answer = client(host="console.example").get(path, headers={"host": host})
    assert answer.status_code == HOSTS[host]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_runs_the_consoles_own_script_alone(path: str) -> None:
    answer = client().get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert re.findall("<script.*?</script>", answer.text) == [
        '<script src="/static/console.js"></script>'
    ]
    assert "<img" not in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/", "/fleet", "/api/status"])
def test_nothing_can_be_changed(method: str, path: str) -> None:
    assert client().request(method, path).status_code == 405


def printed(show: Callable[[Console], object]) -> Any:
    text = io.StringIO()
    show(Console(file=text))
    return json.loads(text.getvalue())


def test_json_is_what_the_commands_print() -> None:
    view, asked = SEEN.view, client()
    wanted = {
        "status": printed(lambda c: status.print_status(SEEN.status, c, as_json=True)),
        "rounds": report_of(TASK, view.rounds).fields(),
        "jobs": [],
    }
    for name, found in wanted.items():
        assert asked.get(f"/api/{name}").json() == found
    [found] = asked.get("/api/dead-letters").json()
    assert dead_letters.LetterReport.of_fields(found).reason == "bad-arrow"
    lines = asked.get("/api/timeline?last=2").json()
    assert [line["text"] for line in lines] == [e.text for e in view.timeline.entries[-2:]]
    assert asked.get("/api/timeline?last=0").status_code == 422
    page = asked.get("/api/openapi.json").json()
    assert set(page["paths"]) == {f"/api/{name}" for name in (*wanted, "dead-letters", "timeline")}
    schemas = page["components"]["schemas"]
    assert {"StatusReport", "DeviceState", "JobRow"} <= set(schemas)
    assert set(re.findall(r"#/components/schemas/(\w+)", json.dumps(page))) <= set(schemas)


def test_what_is_not_there_is_not_found_and_past_that_is_not_read_is_not_ready() -> None:
    assert client().get("/devices/nobody").status_code == 404
    assert client().get("/fleet?size=100000").status_code == 422
    assert [client().get(path).status_code for path in ("/live", "/ready")] == [200, 200]
    assert client(ready=False).get("/ready").status_code == 503


def test_a_command_to_copy_has_what_the_console_was_started_with() -> None:
    made = settings(options=("--state", "st"), kafka="k:1")
    promote = made.command("models promote", "2-b c")
    assert promote == "tidewheel models promote t.py:task '2-b c' --state st"
    train = made.command("train", topics=True)
    assert train == "tidewheel train t.py:task --state st --kafka k:1"


# --- the process ----------------------------------------------------------------------------------


@contextmanager
def started(folder: Path, *words: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A console without a broker, and its address."""
    command = [sys.executable, "-m", "compose.cli.main", "console", f"{TINY}:task", "--state", "st"]
    with (folder / "err").open("w") as errors:
        process = subprocess.Popen(
            [*command, "--kafka", "127.0.0.1:1", "--port", "0", *words],
            cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+?(?=;)", line)
        assert found, (line, (folder / "err").read_text())
        yield process, found[0]
    finally:
        process.kill()
        process.wait(20)
        process.stdout.close()


def answer(address: str, path: str) -> int:
    try:
        with urllib.request.urlopen(f"{address}{path}", timeout=10) as found:
            return int(found.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.usefixtures("executed")
def test_without_a_broker_it_lives_and_ends_cleanly(tmp_path: Path) -> None:
    with started(tmp_path) as (process, address):
        until(lambda: answer(address, "/live") == 200, "it answers")
        assert answer(address, "/ready") == 503
        assert process.stdout is not None
        assert process.stdout.readline() == "connecting to Kafka at 127.0.0.1:1\n"
        said = tmp_path / "err"
        until(lambda: "Kafka is not reached: " in said.read_text(), "the reason")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert "Traceback" not in said.read_text()
    assert not (tmp_path / "st").exists()  # it keeps nothing


def test_on_all_addresses_it_says_that_everyone_can_read(tmp_path: Path) -> None:
    with started(tmp_path, "--host", "0.0.0.0") as (process, address):
        port = address.rpartition(":")[2]
        for name in ("127.0.0.1", "localhost", socket.gethostname()):
            until(lambda name=name: answer(f"http://{name}:{port}", "/live") == 200, name)
        assert process.stdout is not None
        assert "Everyone who can reach this port can read everything" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_port_that_is_taken_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / ".tidewheel").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "compose.cli.main", "console", f"{TINY}:task", "--port", port],
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in line
    assert "--port" in line


# --- the watch of a real broker -------------------------------------------------------------------


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return load_task(own_task(tmp_path))


@pytest.fixture
def watch(embedded: BrokerSettings, task: Task) -> Iterator[Watch]:
    made = Watch(embedded, task)
    yield made
    made.stop()


def sees(watch: Watch, condition: Callable[[Moment], object], what: str) -> None:
    until(lambda: watch.look(condition), what)


def send(broker: BrokerSettings, task: Task, *messages: Received) -> None:
    with closing(Producer(broker)) as producer:
        for message in messages:
            topic = topic_name(task.id, message.topic.removeprefix(f"{TASK}."))
            producer.put(topic, message.key, message.value, message.headers)


def test_it_says_that_topics_are_missing_and_goes_on_when_they_are_there(
    embedded: BrokerSettings, task: Task, watch: Watch
) -> None:
    watch.start()
    sees(watch, lambda seen: "does not have the topics" in seen.link.trouble, "they are missing")
    assert watch.look(lambda seen: f"{task.id}." in seen.link.why)
    ensure_topics(embedded, topic_specs(task.id))
    sees(watch, lambda seen: not seen.link.trouble, "there is no trouble any more")
    send(embedded, task, device("d0"), report("d0", 5), letter(0))
    sees(watch, lambda seen: seen.view.devices.keys() == {"d0"}, "the device is seen")
    sees(watch, lambda seen: seen.history.windows("d0"), "its window is seen")
    sees(watch, lambda seen: len(seen.history.letters) == 1, "the letter is seen")
    assert watch.look(lambda seen: seen.lag.partitions)


def test_after_a_snapshot_the_windows_before_it_are_shown_and_counted_once(
    embedded: BrokerSettings, task: Task, watch: Watch
) -> None:
    ensure_topics(embedded, topic_specs(task.id))
    send(embedded, task, device("d0"), *(report("d0", ago_s) for ago_s in (30, 20, 20)))
    view = read_view(embedded, task.id)
    view.evidence.note(CANARY, "canary continues", Odds(1, 0.5, 2.0))
    with closing(Producer(embedded)) as producer:
        publish(producer, view, 1)
    send(embedded, task, report("d0", 20), report("d0", 10))
    watch.start()
    sees(watch, lambda seen: seen.view.windows == 3, "all windows are counted")
    assert watch.look(lambda seen: len(seen.history.windows("d0"))) == 3
    sees(watch, lambda seen: seen.view.evidence.odds, "the controller's evidence is seen")
    view.evidence.note(CANARY, "canary continues: 9 windows", Odds(1, 0.5, 2.0))
    with closing(Producer(embedded)) as producer:
        publish(producer, view, 2)
    offered = decision(1, "stage", CANARY, 1, stable=STABLE, offered=CANARY, share=0.25, stage=1)
    send(embedded, task, offered)
    newer = "canary continues: 9 windows"
    sees(watch, lambda seen: seen.view.canary.words == newer, "newer evidence is seen")
