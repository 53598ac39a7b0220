"""The JSON API answers with what it describes, and says the same as the command line."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compose.dashboard.processes import ProcessUsage
from compose.dashboard.web.api import api, make_app
from compose.reports import rounds, status
from compose.reports.documents import DecisionsReport, JobsReport, RunsReport, StatusReport
from streams.contract.task import load_task
from tests.compose.dashboard.client import Client
from tests.compose.dashboard.made_up import HTML, FakeWatch, fleet, observed

TINY = Path(__file__).parents[2] / "fakes" / "tiny_task.py"
USAGE = ProcessUsage(Path("/nowhere"))
SEEN = observed(*fleet())


@pytest.fixture(scope="module")
def client() -> Client:
    app = make_app("test")
    app.include_router(
        api(
            FakeWatch(SEEN).watch,
            load_task(f"{TINY}:task"),
            lambda: ([], []),
            USAGE,
        )
    )
    return Client(app)


def got(client: Client, path: str) -> Any:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_status_is_that_of_the_command_line_and_as_described(client: Client) -> None:
    text = io.StringIO()
    status.print_status(SEEN.status, Console(file=text), as_json=True)
    found = got(client, "/api/status")
    assert found == json.loads(text.getvalue())
    assert StatusReport.model_validate(found).model_dump(mode="json") == found


def test_runs_and_decisions_are_those_of_the_command_line(client: Client) -> None:
    found = got(client, "/api/runs")
    wanted = rounds.to_json("tiny", rounds.history(SEEN.view.rounds))
    assert found == json.loads(json.dumps(wanted))
    assert RunsReport.model_validate(found).runs
    assert len(DecisionsReport.model_validate(got(client, "/api/decisions")).decisions) == 3
    assert JobsReport.model_validate(got(client, "/api/jobs")).jobs == []


@pytest.mark.parametrize(
    "path",
    ["overview", "fleet?search=d&size=2&sort=pending", "devices/d5", "learning", "releases",
     "timeline?last=5", "dead-letters", "dead-letters/0"],
)  # fmt: skip
def test_each_answer_is_what_the_description_says(client: Client, path: str) -> None:
    """Checked against the models that the description is made of."""
    found = got(client, f"/api/{path}")
    described = client.app.openapi()
    name = "/api/" + path.partition("?")[0]
    for given, wanted in (("devices/d5", "devices/{name}"), ("letters/0", "letters/{offset}")):
        name = name.replace(given, wanted)
    schema = described["paths"][name]["get"]["responses"]["200"]["content"]["application/json"]
    if isinstance(found, dict):
        kind = described["components"]["schemas"][schema["schema"]["$ref"].rpartition("/")[2]]
        assert set(kind.get("required", [])) <= set(found) <= set(kind["properties"])
    else:
        assert schema["schema"]["type"] == "array"
        assert found


def test_what_is_not_there_is_not_found_and_a_wrong_query_is_named(client: Client) -> None:
    assert client.get("/api/devices/nobody").status_code == 404
    assert client.get("/api/dead-letters/99").status_code == 404
    assert client.get("/api/fleet?size=100000").status_code == 422
    assert client.get("/docs").status_code == 404  # it would load scripts from elsewhere


def test_texts_of_devices_come_as_they_are_with_a_type_that_no_browser_shows(
    client: Client,
) -> None:
    answer = client.get("/api/devices/d3")
    assert answer.json()["row"]["activity"] == HTML
    assert answer.headers["content-type"] == "application/json"


def test_it_is_ready_once_the_past_has_been_read(client: Client) -> None:
    assert client.get("/live").status_code == client.get("/ready").status_code == 200
    app = make_app("test")
    app.include_router(
        api(
            FakeWatch(SEEN, ready=False).watch,
            load_task(f"{TINY}:task"),
            lambda: ([], []),
            USAGE,
        )
    )
    assert Client(app).get("/ready").status_code == 503
