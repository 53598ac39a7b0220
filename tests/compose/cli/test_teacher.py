"""`tidewheel models import --teacher`: new weights are signed, kept and offered on a real Kafka."""

import re
from pathlib import Path

import pytest
import torch

from federation.registry.registry import Registry
from streams.contract.artifact import WEIGHTS
from streams.contract.decisions import Ref, Release
from streams.contract.task import load_task
from streams.contract.topics import RELEASES, topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from streams.learning.learning import build_teacher, to_safetensors
from streams.runtime.trust import load_public_key
from tests.compose.cli.test_cli import fails, port_without_listener, tidewheel
from tests.rig.made_up.own_task import own_task
from tests.rig.processes.workers import write_teacher

IMPORT = ("models", "import", "--teacher")

pytestmark = pytest.mark.kafka


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, str]:
    """A folder with a state folder as `prepare` leaves it, and a task of its own."""
    reference = own_task(tmp_path)
    task = load_task(reference)
    made = tmp_path / "made"
    made.mkdir()
    teacher, _ = write_teacher(task, made)
    state = tmp_path / ".tidewheel"
    (state / "keys").mkdir(parents=True)
    (state / "registry").mkdir()
    for suffix in (".pem", ".pub"):
        (made / "key").with_suffix(suffix).rename((state / "keys" / "signing").with_suffix(suffix))
    teacher.rename(state / "registry" / "teacher.twa")
    torch.manual_seed(5)
    (tmp_path / "new.safetensors").write_bytes(to_safetensors(build_teacher(task).state_dict()))
    return tmp_path, reference


def test_new_weights_are_kept_and_offered(kafka: BrokerSettings, place: tuple[Path, str]) -> None:
    folder, reference = place
    task = load_task(reference)
    ensure_topics(kafka, topic_specs(task.id))
    words = (*IMPORT, reference, "new.safetensors", "--kafka", kafka.bootstrap)
    done = tidewheel(*words, folder=folder, PYTHONPATH=str(Path(__file__).parents[3]))
    assert (done.returncode, done.stderr) == (0, "")
    key = load_public_key(folder / ".tidewheel" / "keys" / "signing.pub")
    kept = Registry(folder / ".tidewheel" / "registry", task.name, 1, [key]).teacher()
    assert kept is not None
    assert kept.files[WEIGHTS] == (folder / "new.safetensors").read_bytes()
    first, second, *_ = done.stdout.splitlines()
    assert first == f"teacher {kept.model} is offered to the workers"
    assert re.fullmatch(r"accuracy on held-out devices 0\.\d+ → 0\.\d+", second)
    reader = Reader(kafka, [topic_name(task.id, RELEASES)])
    try:
        _, message = reader.read_to_end()  # under its own key, then under the task's name
    finally:
        reader.close()
    assert message.key == task.id.encode()
    found = Release.decode(message.value)
    assert found.decision.standing.teacher == Ref.of(kept)
    assert [d.model for d in found.deliveries] == [kept.model]


def test_what_is_wrong_is_named_and_nothing_is_kept(
    kafka: BrokerSettings, place: tuple[Path, str]
) -> None:
    folder, reference = place
    path = str(Path(__file__).parents[3])
    before = (folder / ".tidewheel" / "registry" / "teacher.twa").read_bytes()
    (folder / "bad.safetensors").write_bytes(b"garbage")
    broker = ("--kafka", kafka.bootstrap)
    done = tidewheel(*IMPORT, reference, "absent", *broker, folder=folder, PYTHONPATH=path)
    fails(done, 2, "cannot read absent")
    words = (*IMPORT, reference, "bad.safetensors", *broker)
    fails(
        tidewheel(*words, folder=folder, PYTHONPATH=path),
        2,
        "bad.safetensors has no weights that can be read",
    )
    words = ("models", "import", reference, "new.safetensors", *broker)
    fails(tidewheel(*words, folder=folder, PYTHONPATH=path), 2, "--kafka is for --teacher")
    nowhere = ("--kafka", f"127.0.0.1:{port_without_listener()}")
    words = (*IMPORT, reference, "new.safetensors", *nowhere)
    fails(tidewheel(*words, folder=folder, PYTHONPATH=path), 1, "no Kafka broker answers")
    assert (folder / ".tidewheel" / "registry" / "teacher.twa").read_bytes() == before
