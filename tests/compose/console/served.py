"""The console of a made-up fleet, without a broker: `python -m tests.compose.console.served`.

Prints its address. It shows the fleet of `made_up.fleet`, with --devices a large one, with --empty
nothing at all.
"""

import argparse
import sys
import time
from pathlib import Path

import uvicorn

from compose.console.server import ConsoleSettings, address_of, listen, make_console
from streams.contract.task import load_task
from streams.kafka.settings import BrokerSettings
from tests.compose.console.made_up import FakeWatch, absorbed, fleet, many

TINY = Path(__file__).parents[2] / "rig" / "made_up" / "tiny_task.py"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=0)
    parser.add_argument("--empty", action="store_true")
    parser.add_argument("--state", type=Path, default=Path("/nowhere"))
    options = parser.parse_args()
    now_s = time.time()
    history = absorbed(many(options.devices) if options.devices else fleet(now_s, -7200))
    if options.empty:
        history = absorbed([])
    broker, task = BrokerSettings(bootstrap="broker:9092"), load_task(f"{TINY}:task")
    settings = ConsoleSettings(broker, options.state, "tiny.py:task", port=0)
    watch = FakeWatch(history).watch
    listening = listen(settings)
    sys.stdout.write(f"{address_of(listening)}\n")
    sys.stdout.flush()
    app = make_console(settings, task, watch)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
