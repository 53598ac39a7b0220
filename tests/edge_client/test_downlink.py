"""What a device does about decisions on a real Kafka, sound ones and all others: what it served
before goes on, and the reason is told."""

import contextlib
import hashlib
import http.server
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from edge_client import downlink as downlink_module
from edge_client.downlink import Downlink
from edge_client.inference.slots import Slots
from edge_client.samples.samples import Samples
from federation.evaluation.quantization import complete
from federation.registry import publisher
from federation.registry.registry import Registry
from streams.contract.artifact import (
    GRAPH,
    INT8,
    WEIGHTS,
    digest_of,
    files_of,
    key_id,
    model_name,
    pack,
    without_float,
)
from streams.contract.decisions import Delivery, Ref, Release, sign
from streams.contract.errors import BrokerUnavailable
from streams.contract.task import Task, load_task
from streams.contract.topics import ARTIFACTS, LABELS, RELEASES, topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import partition_of
from streams.kafka.settings import BrokerSettings
from streams.learning.onnx_model import int8_file
from streams.runtime.trust import Acceptance, create_key
from tests.rig.made_up.models import artifact, plain
from tests.rig.made_up.own_task import own_task
from tests.rig.processes.polling import until
from tests.rig.unwrap import unwrap

pytestmark = pytest.mark.kafka
WHO = "d0"


@dataclass
class Rig:
    """A registry, a producer, and one device's downlink, which can be restarted."""

    task: Task
    folder: Path
    broker: BrokerSettings
    graph: bytes
    key: Ed25519PrivateKey
    registry: Registry
    producer: Producer
    told: Release | None = None
    trains: bool = True
    running: list[Downlink] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.acceptance = self.slots = self.downlink = None  # type: ignore[assignment]

    def version(self, number: int, key: Ed25519PrivateKey | None = None, **more: object) -> bytes:
        made = {"graph": self.graph, "task": self.task, **more}
        return artifact(key or self.key, plain(number), number, **made)  # type: ignore[arg-type]

    def serve(self, number: int) -> str:
        """Decide that all devices serve a new version, and tell of it."""
        model = self.registry.add(self.version(number)).model
        self.registry.serve(model, self.key, "a test")
        self.told = publisher.announce(self.producer, self.registry, self.told)
        return model

    def say(self, said: Release, key: bytes | None = None) -> None:
        """What an attacker, or a broken controller, puts on `releases`."""
        topic = topic_name(self.task.id, RELEASES)
        self.producer.put(topic, key or self.task.id.encode(), said.encode())

    def decided(self, data: bytes, model: str, digest: str, base: str | None = None) -> Release:
        """A sound decision for bytes that are delivered as they are."""
        last = self.registry.last()
        ref = Ref(model=model, digest=digest, size=100_000)
        standing = self.registry.desired().replace(stable=ref)
        made = self.registry.decide(self.key, "served", standing, last, model=model)
        return made.replace(deliveries=[self.delivered(data, model, base)])

    def delivered(
        self, data: bytes, model: str, base: str | None = None, size: int = 20_000
    ) -> Delivery:
        sha = hashlib.sha256(data).hexdigest()
        topic = topic_name(self.task.id, ARTIFACTS)
        parts = list(publisher.chunks(data, size))
        offsets = [self.producer.put(topic, sha.encode(), p, h) for p, h in parts]
        return Delivery(
            model=model, base=base, sha256=sha, size=len(data), chunks=len(parts), offset=offsets[0]
        )  # fmt: skip

    def start(self) -> None:
        slots = self.folder / "slots"
        self.acceptance = Acceptance(slots, self.task, [self.key.public_key()])
        self.slots = Slots(
            slots, self.task, lambda: self.acceptance.trusted, known=lambda: self.acceptance.known
        )
        self.slots.open()
        self.downlink = Downlink(
            self.task,
            WHO,
            self.broker,
            slots=self.slots,
            acceptance=self.acceptance,
            samples=Samples(self.task, self.folder / "samples.rows"),
            downloads=self.folder / "downloads",
            invited=lambda *_given, **_named: None,
            trains=self.trains,
        )
        self.downlink.start()
        self.running.append(self.downlink)

    def stop(self) -> None:
        for one in self.running:
            one.stop()
            one.join(20)  # a busy machine takes longer than a device waits
            assert not one.is_alive()
        self.running.clear()

    def serves(self, model: str) -> None:
        until(lambda: self.slots.active == model, f"{model} is served: {self.downlink.error}", 30)
        until(lambda: self.downlink.error is None, f"no error: {self.downlink.error}", 30)

    def complains(self, text: str) -> None:
        until(lambda: text in (self.downlink.error or ""), f"{text}: {self.downlink.error}", 30)


@pytest.fixture
def rig(
    kafka: BrokerSettings, tmp_path: Path, graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Rig]:
    monkeypatch.setattr(downlink_module, "RETRY_S", 0.2)
    monkeypatch.setattr(downlink_module, "RETRY_MOST_S", 0.5)
    for wait in ("WAIT_S", "HOLD_S"):  # an agent's end does not wait for its thread, a test's does
        monkeypatch.setattr(downlink_module, wait, 0.3)
    task = load_task(own_task(tmp_path))
    ensure_topics(kafka, topic_specs(task.id))
    key = create_key(tmp_path / "signing.pem")
    registry = Registry(tmp_path / "registry", task.name, task.version, [key.public_key()])
    made = Rig(task, tmp_path, kafka, graph, key, registry, Producer(kafka))
    first = made.serve(1)
    made.start()
    made.serves(first)
    yield made
    made.stop()
    made.producer.close()


def test_a_new_version_comes_as_a_delta_and_a_stranger_to_it_gets_the_whole(rig: Rig) -> None:
    first, whole = rig.slots.active, rig.downlink.received_bytes
    assert whole == len(rig.registry.read(str(first)))
    second = rig.registry.add(rig.version(2)).model
    last = unwrap(rig.registry.last())
    standing = last.decision.standing.replace(
        offered=Ref(model=second, digest=rig.registry.load(second).digest, size=100_000), share=1.0
    )
    rig.registry.decide(rig.key, "stage", standing, last, model=second)
    rig.told = publisher.announce(rig.producer, rig.registry, rig.told)
    rig.serves(second)
    assert rig.downlink.received_bytes - whole == len(rig.registry.delta(second, str(first)))
    rig.registry.serve(second, rig.key, "all")
    rig.told = publisher.announce(rig.producer, rig.registry, rig.told)
    rig.stop()
    other = Rig(
        rig.task, rig.folder / "other", rig.broker, rig.graph, rig.key, rig.registry, rig.producer
    )
    other.start()
    try:
        other.serves(second)
        assert other.downlink.received_bytes == len(rig.registry.read(second))
    finally:
        other.stop()


@pytest.mark.parametrize("trains", [False, True])
def test_of_a_quantized_version_a_device_that_does_not_train_gets_what_answers(
    rig: Rig, trains: bool
) -> None:
    manifest, files = files_of(rig.version(2))
    weights = safetensors.numpy.load(files[WEIGHTS])
    files[INT8] = int8_file(complete(files[GRAPH], weights).SerializeToString())
    data = pack(manifest, files, rig.key)
    model = rig.registry.add(data).model
    rig.registry.serve(model, rig.key, "a test")
    rig.told = publisher.announce(rig.producer, rig.registry, rig.told)
    other = replace(rig, folder=rig.folder / "other", running=[], trains=trains)
    other.start()
    try:
        other.serves(model)
        wanted = data if trains else without_float(data)
        assert other.downlink.received_bytes == len(wanted)
        assert (other.folder / "slots" / f"{model}.twa").read_bytes() == wanted
    finally:
        other.stop()


def test_an_older_decision_that_comes_again_changes_nothing(rig: Rig) -> None:
    """Also where the device was restarted in between."""
    old = unwrap(rig.told)
    second = rig.serve(2)
    rig.serves(second)
    for _ in range(2):
        rig.say(old)
        rig.complains("release refused: replayed: decision 1 comes after decision 2")
        assert rig.slots.active == second
        rig.stop()
        rig.start()
        until(lambda: rig.slots.active == second, "the second is served", 30)


def altered(rig: Rig, sound: Release) -> Release:
    return sound.replace(text=sound.text.replace('"share":0.0', '"share":1.0'))


def stranger(rig: Rig, sound: Release) -> Release:
    return sign(sound.decision, Ed25519PrivateKey.generate())


@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (altered, "signature"),
        (stranger, "untrusted-key"),
    ],
)
def test_a_decision_that_is_not_the_servers_changes_nothing(
    rig: Rig, forge: Callable[[Rig, Release], Release], reason: str
) -> None:
    first = rig.slots.active
    model = rig.registry.add(rig.version(2)).model
    sound = rig.registry.serve(model, rig.key, "a test")
    rig.say(forge(rig, sound))
    rig.complains(f"release refused: {reason}")
    assert rig.slots.active == first
    rig.told = publisher.announce(rig.producer, rig.registry, rig.told)
    rig.serves(model)


@pytest.mark.parametrize("reason", ["untrusted-key", "not-runnable"])
def test_bytes_that_do_not_verify_are_not_served(rig: Rig, reason: str) -> None:
    """What else may be wrong with a version is in test_slots."""
    first = rig.slots.active
    data = rig.version(2, graph=b"not onnx", probe=b"")
    if reason == "untrusted-key":
        data = rig.version(2, Ed25519PrivateKey.generate())
    digest = digest_of(data)
    rig.say(rig.decided(data, model_name(2, digest), digest))
    rig.complains(reason)
    assert rig.slots.active == first
    third = rig.serve(3)
    rig.serves(third)


def test_a_version_that_nobody_has_is_told_of_and_taken_when_it_comes(rig: Rig) -> None:
    """Not delivered at all; then a part of it alone; then whole."""
    first = rig.slots.active
    data = rig.version(2)
    made = rig.registry.add(data)
    said = rig.registry.serve(made.model, rig.key, "a test")
    whole = rig.delivered(data, made.model)
    nowhere = whole.replace(offset=whole.offset + 1000, sha256="a" * 64)
    rig.say(said.replace(deliveries=[nowhere]))
    rig.complains(f"0 of {whole.chunks} chunks of {made.model}")
    late = whole.replace(offset=whole.offset + 1)
    rig.say(said.replace(deliveries=[late]))
    rig.complains(f"{whole.chunks - 1} of {whole.chunks} chunks")
    other = whole.replace(model="7-aaaaaaaa")
    rig.say(said.replace(deliveries=[other]))
    rig.complains("has no delivery and no URL")
    assert rig.slots.active == first
    rig.say(said.replace(deliveries=[whole]))
    rig.serves(made.model)


def test_what_came_before_the_end_of_the_process_is_not_fetched_again(rig: Rig) -> None:
    """Kafka has it no more: whoever began again would have nothing."""
    data = rig.version(2)
    made = rig.registry.add(data)
    topic, parts = topic_name(rig.task.id, ARTIFACTS), list(publisher.chunks(data, 5_000))
    sha, half = hashlib.sha256(data).hexdigest(), len(parts) // 2
    offsets = [rig.producer.put(topic, sha.encode(), p, h) for p, h in parts[:half]]
    delivery = Delivery(
        model=made.model, sha256=sha, size=len(data), chunks=len(parts), offset=offsets[0]
    )
    said = rig.registry.serve(made.model, rig.key, "a test")
    rig.say(said.replace(deliveries=[delivery]))
    rig.complains(f"{half} of {len(parts)} chunks")
    rig.stop()
    admin = KafkaAdminClient(**rig.broker.client_options())
    admin.delete_records({TopicPartition(topic, 0): offsets[-1] + 1})
    admin.close()
    rig.start()
    rig.complains(f"{half} of {len(parts)} chunks")
    for part, headers in parts[half:]:
        rig.producer.put(topic, sha.encode(), part, headers)
    rig.serves(made.model)
    assert not list((rig.folder / "downloads").iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from edge_client.fetch import Downloads, PersistentDownload
from streams.contract.decisions import Delivery
from streams.kafka.artifact_download import fetch
from streams.kafka.settings import BrokerSettings

broker, delivery, folder, task, time = sys.argv[1:]
kept, left = PersistentDownload._append, [int(time)]

def append(self, data):
    left[0] -= 1
    kept(self, data if left[0] else data[: len(data) // 2])
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

PersistentDownload._append = append
wanted = Delivery.decode(delivery.encode())
download = Downloads(Path(folder)).of(wanted)
fetch(BrokerSettings.decode(broker.encode()), task, download, lambda: False)
"""


@pytest.mark.parametrize("time", [1, 4, -1])
def test_a_process_that_was_killed_in_the_middle_of_a_chunk_has_those_before(
    rig: Rig, time: int
) -> None:
    """The first, one, and the last that is stored: all but the last are."""
    data = rig.version(2)
    made, topic = rig.registry.add(data), topic_name(rig.task.id, ARTIFACTS)
    delivery, folder = rig.delivered(data, made.model, size=2_000), rig.folder / "downloads"
    time %= delivery.chunks
    words = [rig.broker.encode().decode(), delivery.encode().decode(), str(folder), rig.task.id]
    words.append(str(time))
    done = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    admin = KafkaAdminClient(**rig.broker.client_options())
    admin.delete_records({TopicPartition(topic, 0): delivery.offset + time - 1})
    admin.close()
    said = rig.registry.serve(made.model, rig.key, "a test")
    rig.say(said.replace(deliveries=[delivery]))
    rig.serves(made.model)  # by the chunks that Kafka has no more
    assert not list(folder.iterdir())


def test_what_is_above_the_operators_limit_comes_from_the_url_alone(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    made = rig.registry.add(rig.version(2))
    rig.registry.serve(made.model, rig.key, "a test")
    told = unwrap(publisher.announce(rig.producer, rig.registry, rig.told, most=made.size - 1))
    assert told.deliveries == []
    assert f"{made.model} has 0.0 MB" in caplog.text
    assert "give devices a --artifact-url" in caplog.text
    with caplog.at_level("WARNING"):
        again = publisher.send_again(rig.producer, rig.registry, told, [], made.size)
    assert [each.model for each in again.deliveries] == [made.model]
    rig.serves(made.model)


def test_a_delta_that_is_wrong_costs_the_whole(rig: Rig) -> None:
    first, data = str(rig.slots.active), rig.version(2)
    made = rig.registry.add(data)
    said = rig.registry.serve(made.model, rig.key, "a test")
    bad = rig.delivered(b"TWDELT01" + b"x" * 50, made.model, first)
    rig.say(said.replace(deliveries=[bad, rig.delivered(data, made.model)]))
    rig.serves(made.model)


@contextlib.contextmanager
def serving(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """An HTTP server; its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def say_by_url(rig: Rig, ref: Ref, url: str) -> None:
    """All devices are to serve a version whose bytes are at `url` alone."""
    standing = rig.registry.desired().replace(stable=ref, url=url)
    last = rig.registry.last()
    said = rig.registry.decide(rig.key, "served", standing, last, model=ref.model)
    nowhere = Delivery(model=ref.model, sha256="a" * 64, size=9, chunks=1, offset=0)
    rig.say(said.replace(deliveries=[nowhere]))


def test_where_kafka_has_no_bytes_they_come_from_the_url(rig: Rig) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args: object) -> None:
            asked.append(self.path)

    asked: list[str] = []
    made = rig.registry.add(rig.version(2))
    with serving(partial(Quiet, directory=str(rig.folder / "registry"))) as url:
        say_by_url(rig, Ref.of(made), url)
        rig.serves(made.model)
    assert asked[-1] == f"/models/{made.model}.twa"


@pytest.mark.parametrize("comes", ["a decision", "the end"])
def test_a_decision_or_the_end_that_comes_during_a_download_wins(rig: Rig, comes: str) -> None:
    """Also while the server of the version before sends a byte now and then, for hours. The end is
    no failure of the download."""
    asked, gone = threading.Event(), threading.Event()

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            with contextlib.suppress(OSError):
                while not gone.wait(0.1):
                    self.wfile.write(b"x")

        def log_message(self, *_args: object) -> None:
            return

    with serving(Slow) as url:
        say_by_url(rig, Ref(model="2-aaaaaaaa", digest="a" * 64, size=100_000), url)
        assert asked.wait(30)
        if comes == "the end":
            rig.downlink.stop()
            assert not rig.downlink.is_alive()
            assert rig.downlink.error is None
        else:
            rig.serves(rig.serve(3))
        gone.set()


def test_what_is_withdrawn_is_taken_back_and_not_served_again(rig: Rig) -> None:
    first = str(rig.slots.active)
    second = rig.serve(2)
    rig.serves(second)
    before = rig.downlink.received_bytes
    last = unwrap(rig.registry.last())
    ref = Ref(model=first, digest=rig.registry.load(first).digest, size=100_000)
    standing = rig.registry.desired().replace(stable=ref)
    standing = standing.without(second, "its windows are worse")
    rig.registry.decide(rig.key, "rolled-back", standing, last, model=second)
    rig.told = publisher.announce(rig.producer, rig.registry, rig.told)
    rig.serves(first)
    assert rig.downlink.received_bytes == before  # it had it
    assert rig.slots.refused == {second: "withdrawn: its windows are worse"}
    assert rig.slots.previous is None
    rig.registry.serve(second, rig.key, "by hand, after all")
    rig.told = publisher.announce(rig.producer, rig.registry, rig.told)
    rig.serves(second)
    assert rig.slots.refused == {}


def test_a_revoked_keys_version_is_not_installed_and_what_it_signed_before_goes_on(
    rig: Rig,
) -> None:
    first = str(rig.slots.active)
    new = Ed25519PrivateKey.generate()
    raw = new.public_key().public_bytes_raw().hex()
    names = {key_id(new.public_key()): raw}
    trusted = [rig.key.public_key(), new.public_key()]
    registry = Registry(rig.folder / "registry", rig.task.name, 1, trusted)
    standing = registry.desired().replace(keys=names)
    registry.decide(rig.key, "keys", standing, registry.last(), reason="a new key")
    revoked = standing.replace(revoked=[key_id(rig.key.public_key())])
    registry.decide(new, "keys", revoked, registry.last(), reason="the old one is lost")
    rig.told = publisher.announce(rig.producer, registry, rig.told)
    until(lambda: rig.acceptance.seq == 3, "the keys are known", 30)
    old_keys = registry.add(rig.version(2))  # signed by the key that was lost
    registry.serve(old_keys.model, new, "a test")
    rig.told = publisher.announce(rig.producer, registry, rig.told)
    rig.complains("untrusted-key")
    assert rig.slots.active == first
    rig.stop()
    rig.start()
    assert rig.slots.active == first  # signed by it as well, and installed before
    third = registry.add(rig.version(3, new))
    registry.serve(third.model, new, "a test")
    rig.told = publisher.announce(rig.producer, registry, rig.told)
    rig.serves(third.model)


def test_labels_of_its_own_events_reach_the_samples(rig: Rig) -> None:
    samples, task = rig.downlink._samples, rig.task
    samples.epoch = "e1"
    for seq in range(4):
        segment = np.full(task.segment_shape, seq, np.float32)
        samples.add(seq, 10 + seq, segment, np.zeros(task.outputs, np.float32), 0, None)
    of_it = [
        {"epoch": "e1", "seq": 1, "label": 2}, {"time_us": 12, "label": "slow"},
        {"epoch": "e0", "seq": 3, "label": 1}, {"event_id": "of another producer", "label": 1},
    ]  # fmt: skip
    topic = topic_name(task.id, LABELS)
    near = next(n for n in map(str, range(99)) if partition_of(n, 4) == partition_of(WHO, 4))
    rig.producer.put(topic, near.encode(), b'{"time_us": 13, "label": 1}')
    rig.producer.put(topic, WHO.encode(), b"[{}]")
    rig.producer.put(topic, WHO.encode(), json.dumps(of_it).encode())
    until(lambda: samples.labels_read == 3, "they are read", 30)
    assert samples.sources() == {"external": 2}
    times, _, labels = samples.answered()
    assert dict(zip(times.tolist(), labels[:, 0].tolist(), strict=True)) == {11: 2.0, 12: 0.0}
    samples.save()
    assert Samples(task, rig.folder / "samples.rows", epoch="e1").labels_read == 3


def test_a_device_that_cannot_connect_says_once_that_nothing_comes_in(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[object] = []

    def no_reader(*given: object, **_named: object) -> None:
        tries.append(given)
        raise BrokerUnavailable("no Kafka broker answers")

    rig.stop()
    monkeypatch.setattr("streams.kafka.reader.Reader", no_reader)
    rig.start()
    until(lambda: len(tries) > 2, "it tries again")
    said = "no decision, score or label comes in: no Kafka broker answers; trying again"
    assert [text for text in caplog.messages if "comes in" in text] == [said]
