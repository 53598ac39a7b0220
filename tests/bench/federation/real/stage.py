"""What every measurement on real processes needs: people's segments in files, the first model in a
registry, and a plan of devices."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edge_client.samples.splits import HELD_OUT, TRAIN, split_of
from federation.bootstrap.dataset import segments_of_device
from federation.bootstrap.initial_model import prepare
from federation.evaluation.accuracy import HeldOut
from federation.registry.registry import Registry
from streams.contract.artifact import WEIGHTS
from streams.contract.task import Task
from streams.runtime.key_files import create_key
from tests.bench.federation.real.devices import Planned
from tests.bench.kafka import Kafka

SECONDS_AWAY = 60.0  # until Flower gives up a node of which it hears nothing


@dataclass(frozen=True)
class Stage:
    """folder: for everything; cache: of pilots; data: people's segments as .npz; reference: the
    task; quick: less of everything."""

    folder: Path
    cache: Path
    data: Path
    reference: str
    task: Task
    kafka: Kafka
    quick: bool = False

    @contextmanager
    def state(self, name: str) -> Iterator[Path]:
        """A state folder with a registry that serves the first model, and judges by the segments
        that the fleet's people hold out."""
        folder = self.folder / name
        folder.mkdir()
        key = create_key(folder / "keys" / "signing.pem")
        registry = self._registry(folder, [key.public_key()])
        prepare(self.reference, self.task, registry, key, self.cache)
        serving = registry.serving()
        assert serving is not None
        (folder / "first.safetensors").write_bytes(serving.files[WEIGHTS])
        registry.set_heldout(self._fleet().encode())
        yield folder
        shutil.rmtree(folder, ignore_errors=True)

    def _registry(self, folder: Path, keys: list) -> Registry:  # type: ignore[type-arg]
        return Registry(folder / "registry", self.task.name, self.task.version, keys)

    def _fleet(self) -> HeldOut:
        people = [np.load(self.person(name)) for name in self.task.device_names("fleet")]
        return HeldOut(*(np.concatenate([p[key] for p in people]) for key in ("held_x", "held_y")))

    def heldout(self, folder: Path) -> Path:
        return self._registry(folder, []).folder / "heldout.safetensors"

    def plan(self, folder: Path, count: int) -> list[Planned]:
        """The first `count` people of the fleet."""
        names = self.task.device_names("fleet")[:count]
        sockets = Path(tempfile.mkdtemp(prefix="tw-", dir="/tmp"))
        return [
            Planned(
                name,
                str(self.person(name)),
                str(folder / "devices" / name),
                str(sockets / f"{name}.sock"),
            )
            for name in names
        ]

    def person(self, name: str) -> Path:
        """Labelled segments, split as a device splits them: x, y to train; held_x, held_y not."""
        path = self.data / f"{name}.npz"
        if not path.exists():
            self.data.mkdir(parents=True, exist_ok=True)
            found = segments_of_device(self.task, name)
            span_us = round((self.task.segment.samples - 1) / self.task.rate_hz * 1e6)
            split = np.array([split_of(self.task, int(t), int(t) + span_us) for t in found.times])
            known = ~np.isnan(found.labels).any(axis=1)
            parts = {}
            for kind, (x, y) in ((TRAIN, ("x", "y")), (HELD_OUT, ("held_x", "held_y"))):
                rows = known & (split == kind)
                parts |= {x: found.segments[rows], y: found.labels[rows]}
            np.savez(path, **parts)
        return path


def failing(plan: list[Planned], drop: float, slow: float, share: float) -> list[Planned]:
    """All drop out of a round with probability `drop`; a `share` is `slow` times slower."""
    step = round(1 / share) if share else len(plan) + 1
    return [
        replace(one, drop=drop, away_s=SECONDS_AWAY, slow=slow if i % step == step - 1 else 1.0)
        for i, one in enumerate(plan)
    ]
