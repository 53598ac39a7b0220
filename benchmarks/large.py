"""Models of real size: `python -m benchmarks.large`.

    rounds    a round of 5.2 M parameters beside stock Flower's, and the ServerApp's memory
    spread    from an announced version of 5.2 M parameters to 20 devices that serve it
    int8      examples/digits in int8 beside float: bytes, p50, accuracy
    install   p50 of answers while a version of 25 M parameters is fetched and installed

`int8` needs `python -m examples.digits.pretrain` once.
"""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import torch

from benchmarks import release
from benchmarks.frame import Bench, Cell, Figure, main
from benchmarks.support.flower import Arena
from benchmarks.support.processes import family
from benchmarks.support.server import Server
from edge_client.fetch import Downloads
from edge_client.inference.engine import Engine
from edge_client.inference.slots import Slots
from federation.bootstrap.dataset import segments_of_device, stack
from federation.registry.publisher import chunks
from streams.contract.artifact import without_float
from streams.contract.decisions import Delivery
from streams.contract.task import load_task
from streams.contract.topics import ARTIFACTS, topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.artifact_download import fetch
from streams.kafka.producer import Producer
from streams.learning.learning import build_model

LARGE, LARGER = (f"benchmarks.support.large_tasks:{name}" for name in ("task", "larger"))
DIGITS, STOCK, OURS = "examples/digits/task.py:task", "Flower's FedAvg", "ours"
EVERY_S = 0.02  # between two answers


def rounds(bench: Bench) -> None:
    number, count, of_memory = bench.size(3, 2), 4, bench.size(20, 4)
    size = 4 * sum(p.numel() for p in build_model(load_task(LARGE)).parameters())
    arenas = (f"{name}-{i}" for i in range(9) for name in ("stock", "ours"))

    def arena(devices: int = count) -> Arena:
        return Arena.make(bench, next(arenas), devices, reference=LARGE)

    runs = {
        STOCK: lambda: arena().stock(number, {"fraction-evaluate": 0.0, "timeout": 300.0}),
        OURS: lambda: arena().ours(number, {}),
    }
    found, failed = bench.turns(runs, bench.size(2, 1))
    if failed:
        raise RuntimeError(str(failed))
    seconds = {name: [one.each_s for one in each] for name, each in found.items()}
    ratio = Figure.ratio(seconds[OURS], seconds[STOCK])
    bench.goal("seconds of a round of 5.2 M parameters to stock Flower's", ratio, at_most=0.35)
    with _watched() as peak:
        arena(of_memory).ours(2, {"round-deadline-s": 300.0})
    with _watched() as small:
        Arena.make(bench, "small", count).ours(2, {})
    models = (peak[0] - small[0]) / size
    text = f"memory of the ServerApp with {of_memory} devices beyond its libraries, models"
    bench.goal(text, models, at_most=6.0)
    about = (
        f"{count} devices, {number} rounds of 3 epochs. The ServerApp at its peak has "
        f"{peak[0] / 1e6:.0f} MB of memory that the kernel cannot read back from files, in a "
        f"run of HAR's 16,102 parameters {small[0] / 1e6:.0f}; a model has {size / 1e6:.1f}."
    )
    rows: list[list[Cell]] = [[name, Figure.of(each)] for name, each in seconds.items()]
    bench.table("A round of 5.2 million parameters", ["", "s a round"], rows, about)


@contextmanager
def _watched() -> Iterator[list[float]]:
    """The highest anonymous memory of any ServerApp among the descendants."""
    peak, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            for process in family(psutil.Process().pid):
                with suppress(psutil.Error, OSError):
                    if "serverapp" in " ".join(process.cmdline()):
                        status = Path(f"/proc/{process.pid}/status").read_text()
                        peak[0] = max(peak[0], _anonymous(status))

    threading.Thread(target=watch).start()
    yield peak
    ended.set()


def _anonymous(status: str) -> float:
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return 1024.0 * int(line.split()[1])


def spread(bench: Bench) -> None:
    release.measure(bench, Server(bench.place("state"), LARGE), bench.size(20, 4), 10.0)


def int8(bench: Bench) -> None:
    task, found = load_task(DIGITS), dict[str, tuple[float, float, float]]()
    names = task.device_names("fleet", "held-out")
    held = stack(task, [segments_of_device(task, name) for name in names])
    for kind in ("", "int8"):
        server = Server(bench.place("registry"), DIGITS, {"quantize": kind})
        data = without_float(server.registry.read(server.serving.model))
        engine, took, answers = Engine(server.task, server.registry.verify(data)), list[float](), []
        for segment in held.segments:
            began = time.perf_counter()
            answers.append(engine.run(segment))
            took.append(time.perf_counter() - began)
        right = float(task.correct(np.stack(answers), held.labels).mean())
        found[kind] = len(data), 1e6 * float(np.median(took)), right
    (size, p50, right), (less, sooner, as_right) = found.values()
    bench.goal(
        "int8 to float, digits: bytes that a device needs to answer", less / size, at_most=0.27
    )
    bench.goal("p50 of an answer", sooner / p50, at_most=0.7)
    bench.goal("accuracy, difference", as_right - right, at_least=-0.01)
    rows: list[list[Cell]] = [["float32", *found[""]], ["int8", *found["int8"]]]
    columns = ["", "bytes", "p50, us", "accuracy"]
    text = f"2,076,938 parameters, {len(held.labels):,} images of 15 cameras, one after the other."
    bench.table("A convolutional network in int8", columns, rows, text)


def install(bench: Bench) -> None:
    server, folder = Server(bench.place("registry"), LARGER), bench.place("device")
    task, registry, serving = server.task, server.registry, server.serving
    data = registry.read(serving.model)
    sha, topic = hashlib.sha256(data).hexdigest(), topic_name(task.id, ARTIFACTS)
    ensure_topics(bench.kafka, topic_specs(task.id, 1))
    with closing(Producer(bench.kafka)) as producer:
        offsets = [producer.put(topic, sha.encode(), *part) for part in chunks(data)]
    delivery = Delivery(
        model=serving.model, sha256=sha, size=len(data), chunks=len(offsets), offset=offsets[0]
    )
    engine, segment = Engine(task, serving), np.zeros(task.segment_shape, np.float32)

    def p50(until: threading.Event) -> float:
        took = []
        while not until.wait(EVERY_S):
            began = time.perf_counter()
            engine.run(segment)
            took.append(time.perf_counter() - began)
        return 1e3 * float(np.median(took))

    ratios, rows = list[float](), list[list[Cell]]()
    for number in range(bench.size(3, 1)):
        idle = threading.Event()
        threading.Timer(5.0, idle.set).start()
        before, done, began = p50(idle), threading.Event(), time.monotonic()

        def work(place: Path = folder / str(number), done: threading.Event = done) -> None:
            download = Downloads(place / "downloads").of(delivery)
            whole = fetch(bench.kafka, task.id, download, lambda: False)
            Slots(place / "slots", task, registry.trusted).install(whole)
            done.set()

        threading.Thread(target=work).start()
        during = p50(done)
        ratios.append(during / before)
        rows.append([number + 1, before, during, time.monotonic() - began])
    columns = ["", "p50 idle, ms", "p50 during, ms", "fetched and installed, s"]
    text = (
        f"An artifact of {len(data):,} bytes, from Kafka on the same machine; 50 answers a second."
    )
    bench.table("Answers while a large version is installed", columns, rows, text)
    bench.goal(
        "p50 while a version of 100 MB is installed, to idle", Figure.of(ratios), at_most=1.3
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts = {f.__name__: f for f in (rounds, spread, int8, install)}
    main("large", parts, ("torch", "flwr", "onnxruntime"))
