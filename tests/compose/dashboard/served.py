"""The console of a made-up fleet, without a broker: `python -m tests.compose.dashboard.served`.

Prints its address. It shows the fleet of `made_up.fleet`, with --devices a large one, with --empty
nothing at all.
"""

import argparse
import sys
import time
from pathlib import Path

import uvicorn

from compose.dashboard.model.observed import Beside, Link, Observed
from compose.dashboard.web.server import address_of, listen, make_console
from compose.dashboard.web.settings import ConsoleSettings
from compose.reports.lag import Lag, PartitionLag
from streams.contract.task import load_task
from streams.fleet.view import FleetView
from streams.kafka.settings import BrokerSettings
from tests.compose.dashboard import showcase
from tests.compose.dashboard.made_up import FakeWatch, fleet, many
from tests.compose.messages import TASK

TINY = Path(__file__).parents[2] / "fakes" / "tiny_task.py"


class LiveWatch(FakeWatch):
    """As FakeWatch, of now."""

    def look(self, make):  # type: ignore[no-untyped-def]
        now_s = time.time()
        link = Link("broker:9092", now_s)
        lag = Lag([PartitionLag(0, 10, 7, 3)])
        return make(Observed(self.seen.beside, lag, link, now_s))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=0)
    parser.add_argument("--empty", action="store_true")
    parser.add_argument("--showcase", action="store_true", help="the fleet of the pictures")
    parser.add_argument("--jobs", type=Path, default=Path("/nowhere"))
    options = parser.parse_args()
    beside = Beside(FleetView(TASK))
    if options.showcase:
        beside = showcase.observe(time.time())
    elif not options.empty:
        now_s = time.time()
        for message in many(options.devices, now_s) if options.devices else fleet(now_s, -7200):
            beside.absorb(message)
    broker = BrokerSettings(bootstrap="broker:9092")
    task = load_task(f"{TINY}:task")
    settings = ConsoleSettings(
        broker, Path("/nowhere"), "tiny.py:task", port=0, jobs=(options.jobs,)
    )
    listening, watch = listen(settings), LiveWatch(Observed(beside)).watch
    app = make_console(settings, task, watch)
    sys.stdout.write(f"{address_of(listening)}\n")
    sys.stdout.flush()
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
