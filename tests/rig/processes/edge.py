"""A real device process, and what its spool, the topic and the store say of its events."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from edge_client.ipc import socket_path
from edge_client.maintenance import state_of
from edge_client.spool.frames import EVENTS
from edge_client.spool.queue import Spool
from edge_client.uplink.task_queues import SPOOL, queue_folder
from streams.contract.accounting import IntervalSet
from streams.contract.documents import DeviceState
from streams.kafka.settings import BrokerSettings
from streams.runtime.trust import create_key
from tests.rig.asked import asked
from tests.rig.made_up.models import artifact, plain
from tests.rig.processes.running import start
from tests.rig.processes.workers import Fleet, until

Wait = Callable[[Callable[[], bool], str, float], None]
STORED_S = 120.0
STACKS_S = 30.0  # a drain that takes longer shows its threads
FILE = 10**7


class Edge:
    """`tidewheel edge run` with a fleet's task and a state folder of its own."""

    def __init__(self, served: Fleet, name: str, folder: Path) -> None:
        self.served, self.name, self.folder = served, name, folder
        folder.mkdir(parents=True, exist_ok=True)
        key = create_key(folder / "keys" / "signing.pem")
        (folder / "model.twa").write_bytes(artifact(key, plain(1), task=served.task))
        self.process: subprocess.Popen[bytes] | None = None
        self.produced = 0

    def start(self, broker: BrokerSettings, *words: str, failpoint: str = "") -> None:
        command = [sys.executable, "-m", "compose.cli.main", "edge", "run"]
        command += [f"{self.served.folder / 'task.py'}:task", "--device", self.name]
        command += ["--state", str(self.folder), "--kafka", broker.bootstrap]
        command += ["--model", str(self.folder / "model.twa"), "--drain", "60", *words]
        env = {**os.environ, "TIDEWHEEL_FAILPOINT": failpoint}
        self.process = start(command, self._log_path, env, session=False)

    @property
    def _log_path(self) -> Path:
        return self.served.folder / f"edge-{self.name}.log"

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def serving(self) -> bool:
        """Whether it answers questions."""
        return socket_path(self.device_folder).exists()

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def dies(self) -> None:
        """Wait for the death that its failpoint brings."""
        assert self.process is not None
        assert self.process.wait(120) == -signal.SIGKILL, self.log[-3000:]
        self.look()

    @property
    def state(self) -> DeviceState:
        """What the running device says of itself."""
        return state_of(self.served.task, self.name, self.device_folder)

    def kill(self) -> None:
        assert self.process is not None
        assert self.running(), self.log[-3000:]
        self.process.kill()
        self.process.wait(10)
        self.look()

    def stop(self) -> None:
        """SIGTERM, and the drain."""
        assert self.process is not None
        assert self.running(), self.log[-3000:]
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STACKS_S)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGUSR1)  # the log has where it waits
            code = self.process.wait(90 - STACKS_S)
        assert code == 0, self.log[-3000:]

    @property
    def device_folder(self) -> Path:
        return self.folder / "devices" / self.name

    @property
    def spool_folder(self) -> Path:
        return queue_folder(self.device_folder, SPOOL, self.served.task)

    def written(self) -> int:
        """Grows with every frame of the spool; FILE more is a file more."""
        with contextlib.suppress(ValueError, FileNotFoundError):  # none yet, or gone by now
            newest = max(self.spool_folder.glob("*.seg"))
            return int(newest.stem.partition("-")[0]) * FILE + newest.stat().st_size
        return 0

    def goes_on(self, count: int = 3, timeout_s: float = 60.0) -> None:
        """Wait until so many more frames were written."""
        for _ in range(count):
            before = self.written()
            until(lambda before=before: self.written() > before, f"{self.name} goes on", timeout_s)

    def look(self) -> set[str]:
        """The spool of a dead device, in a copy: every event that is pending is there or declared,
        and what was produced stays so. The reasons of what is declared."""
        copy = self.served.folder / f"copy-{self.name}"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.spool_folder, copy)
        spool = Spool(copy)
        account = spool.account()
        there, reasons = IntervalSet(), set()
        for frame in spool.read(spool.position, 1 << 30):
            if frame.kind == EVENTS:
                there.add(frame.first, frame.first + frame.count - 1)
            for entry in frame.declarations():
                there.add(entry.first, entry.last)
                reasons.add(entry.reason)
        assert account.balanced
        assert len(there) == account.pending
        assert account.produced >= self.produced
        assert "corrupt" not in reasons
        self.produced = account.produced
        return reasons

    def check(self, wait: Wait = until) -> dict[str, int]:
        """After the drain: the device's account is closed, and the store has each event that was
        delivered once, and each declaration. What was dropped, by reason."""
        spool = Spool(self.spool_folder)
        account = spool.account()
        assert account.balanced
        assert (account.produced, account.pending) == (spool.next_seq, 0), self.log[-6000:]
        assert account.produced >= self.produced
        closed = {"rows": account.delivered, **account.dropped}
        wait(lambda: self.stored(spool.epoch) == closed, f"{closed} in the store", STORED_S)
        scored, dropped = self._seqs(spool.epoch)
        whole = IntervalSet(dropped)
        fresh = [whole.add(seq) for seq in scored]
        assert all(fresh), "an event twice in the store, or scored and dropped"
        assert list(whole) == [(0, account.produced - 1)]
        return account.dropped

    def stored(self, epoch: str) -> dict[str, int]:
        """How many rows the store has of this device, and how many events were dropped why."""
        sql = (
            "select 'rows', count(*) from scores where device = ? and epoch = ? union all "
            "select reason, sum(last - first + 1)::bigint from drops "
            "where device = ? and epoch = ? group by reason"
        )
        return dict(asked(self.served.store, sql, *[self.name, epoch] * 2))

    def _seqs(self, epoch: str) -> tuple[list[int], list[tuple[int, int]]]:
        store, mine = self.served.store, "where device = ? and epoch = ?"
        scored = asked(store, f"select seq from scores {mine}", self.name, epoch)
        dropped = asked(store, f"select first, last from drops {mine}", self.name, epoch)
        return [seq for (seq,) in scored], dropped

    def end(self) -> None:
        if self.process is not None and self.running():
            self.process.kill()
            self.process.wait(10)
