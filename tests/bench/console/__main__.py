"""`python -m tests.bench.console [--devices N]`: see docs/architecture/console.md.

A real Kafka with a state and some windows of each device, a real `tidewheel console`, and Chromium.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

from confluent_kafka import Producer as FastProducer

from compose.launcher.flower_processes import free_ports
from streams.contract.topics import topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.settings import BrokerSettings
from tests.bench.kafka import real_kafka
from tests.bench.meter import sample
from tests.compose.dashboard.browser import Visit, chromium
from tests.compose.dashboard.made_up import many
from tests.compose.messages import TASK

TINY = Path(__file__).parents[2] / "fakes" / "tiny_task.py"
ROUNDS, OPEN_S = 6, 30.0
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.console")
    parser.add_argument("--devices", type=int, default=10_000)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tidewheel-bench-"))
    try:
        with real_kafka(folder) as kafka:
            ensure_topics(kafka.settings, topic_specs(TASK))
            fill(kafka.settings, asked.devices)
            measure(folder, kafka.settings, asked.devices)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def fill(broker: BrokerSettings, devices: int, ago_s: float = 0.0) -> None:
    """A state and a window of each device."""
    producer = FastProducer(
        {"bootstrap.servers": broker.bootstrap, "partitioner": "murmur2_random"}
    )
    now_s = time.time() - ago_s
    for message in many(devices, now_s):
        while True:
            try:
                producer.produce(
                    message.topic, message.value, message.key, timestamp=message.time_ms
                )
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()


def measure(folder: Path, broker: BrokerSettings, devices: int) -> None:
    [port] = free_ports(1)
    began = time.monotonic()
    command = [sys.executable, "-m", "compose.cli.main", "console", f"{TINY}:task", "--port"]
    command += [str(port), "--kafka", broker.bootstrap, "--state", str(folder / "s")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        while not ready(address):
            time.sleep(0.1)
        memory = sample(process.pid).resident_bytes / 1e6
        say(f"{devices:,} devices: ready after {time.monotonic() - began:.1f} s, {memory:.0f} MB")
        look(address, process.pid)
        for number in range(1, ROUNDS):
            fill(broker, devices, ago_s=60.0 * (ROUNDS - number))
        settle(process.pid)
        memory = sample(process.pid).resident_bytes / 1e6
        say(f"after {ROUNDS} windows of each device: {memory:.0f} MB")
    finally:
        process.terminate()
        process.wait(20)


def ready(address: str) -> bool:
    try:
        with closing(urllib.request.urlopen(f"{address}/ready", timeout=5)):
            return True
    except (urllib.error.URLError, OSError):
        return False


def look(address: str, pid: int) -> None:
    """Open pages, then leave one open."""
    with chromium() as browser:
        for path in ("/fleet", "/", "/fleet"):
            visit = Visit(browser, address)
            began = time.monotonic()
            page = visit.open(path)
            page.wait_for_selector("tbody tr" if path == "/fleet" else ".problem")
            took = time.monotonic() - began
            say(f"{path}: first paint {page.evaluate(PAINT):.0f} ms, drawn after {took:.2f} s")
            visit.close()
        visit = Visit(browser, address)
        visit.open("/fleet")
        before = sample(pid).cpu_s
        time.sleep(OPEN_S)
        share = (sample(pid).cpu_s - before) / OPEN_S
        say(f"one open page of the fleet: {share:.0%} of a core of the console")
        visit.close()


def settle(pid: int) -> None:
    """Wait until it has read what there is."""
    before = -1.0
    while (now := sample(pid).cpu_s) - before > 0.5:
        before = now
        time.sleep(3.0)


if __name__ == "__main__":
    main()
