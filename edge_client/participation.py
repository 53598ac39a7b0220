"""The device's part in federated runs: it follows invitations and owns its SuperNode.

Nothing of Flower's runs on a device that no run has invited, unless settings name a SuperLink: then
a SuperNode for any of its runs is there while no invitation holds. An invitation
(streams.contract.invitations) is handled in these steps:

    1 leave it if it does not name this device; refuse it, and count why, unless a trusted key
      signed it for this task, it is fresh, and the SuperLink may be joined
    2 remember it in followed.json, replaced atomically
    3 stop what it trains for itself, start the SuperNode (edge_client.supernode), or let it run
      longer
    4 end the SuperNode when the run has ended, or its lease has, unless it is at work

Killed after 1 or 2 the device is asleep, and the run's next invitation wakes it. The SuperNode ends
when its input is closed, so it does not survive the agent. One that dies is started again, later
each time, while the lease holds.

reasons of refusals: those of `Followed.refusal` (task, expired, replayed), those of a signature
(untrusted-key, signature, invitation), malformed, busy (another run's lease holds), plain-text (a
SuperLink beyond this machine without --superlink-ca), unable (Flower or torch is not installed, or
the machine has less memory than `Training.memory_mb`).
"""

import contextlib
import importlib.util
import ipaddress
import logging
import math
import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_client.supernode import NodeSettings, command
from streams.contract.errors import ArtifactError, MalformedRecord
from streams.contract.invitations import Followed, Invitation, SignedInvitation
from streams.contract.task import Task
from streams.runtime.files import write_atomic

log = logging.getLogger(__name__)

AGAIN_S, AGAIN_MOST_S = 2.0, 60.0  # before a SuperNode that has died is started again
RESIDENT_PULL_S = 3.0  # between two requests of a SuperNode that no run has invited
KILLED_S = 75.0  # for which a SuperLink refuses a SuperNode after another of its key was killed
END_S = 5.0  # for a SuperNode to leave its SuperLink
NEEDED = {"flwr": "Flower", "torch": "torch"}


def memory_of_machine() -> int:
    """Return the bytes that the machine has, or its container."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


@dataclass(frozen=True)
class Joining:
    """How the device joins a SuperLink: the CA's certificate and the node's key, None for plain
    text and no key. `superlink`: the one it stays connected to, HOST:PORT."""

    ca: Path | None = None
    key: Path | None = None
    superlink: str | None = None

    def allows(self, superlink: str) -> bool:
        """Return whether the SuperLink may be joined: plain text stays on this machine."""
        host = superlink.rpartition(":")[0].strip("[]")
        if self.ca is not None or host == "localhost":
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(host).is_loopback
        return False


class Participation:
    """Steps 1 to 4. `busy` returns whether the device works for a run, `interrupt` ends that work;
    `clock` in seconds, `wall` in seconds since 1970."""

    def __init__(
        self,
        task: Task,
        device: str,
        folder: Path,
        socket: Path,
        trusted: Callable[[], Sequence[Ed25519PublicKey]],
        joining: Joining,
        busy: Callable[[], bool],
        interrupt: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._task, self._device, self._socket = task, device, socket
        self._folder, self._trusted, self._joining = folder, trusted, joining
        self._busy, self._interrupt, self._clock, self._wall = busy, interrupt, clock, wall
        self._path = folder / "followed.json"
        self._followed = self._read()
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._invitation: Invitation | None = None
        self._until = self._start_at = 0.0
        self._deaths = 0
        self._stopped, self._refused_s = False, math.inf  # since when it is not admitted
        self.node: int | None = None  # of the SuperNode that runs
        self.error: str | None = None  # why the last two ended or could not join, or more
        self.refused: Counter[str] = Counter()
        missing = [name for key, name in NEEDED.items() if importlib.util.find_spec(key) is None]
        self.unable = f"{' and '.join(missing)} not installed" if missing else None
        self.unable = self.unable if task.learns else "a model of ONNX does not learn"
        if (memory_mb := task.training.memory_mb) > (has_mb := memory_of_machine() // 1_000_000):
            self.unable = self.unable or f"{has_mb} MB of memory, training takes {memory_mb}"

    @property
    def run(self) -> str | None:
        """The run that the device takes part in."""
        return self._invitation.run if self._invitation is not None else None

    @property
    def last_run_us(self) -> int | None:
        """When the device was first invited to its last run, microseconds."""
        return self._followed.last_us

    def receive(self, value: bytes | None, *, live: bool = True) -> None:
        """Follow an invitation, or refuse it. One from before this device was connected (not
        `live`) may have been followed already: it is not counted."""
        try:
            found = self._accepted(value)
        except (ArtifactError, MalformedRecord) as exc:
            reason = exc.reason if isinstance(exc, ArtifactError) else "malformed"
            if live:
                self._refuse(reason, str(exc))
            return
        if found is None:
            return
        if (why := self._obstacle(found)) is None:
            with self._lock:
                self._follow(found)
        elif live:
            self._refuse(why, f"run {found.run} at {found.superlink}")

    def look(self) -> None:
        """Step 4, and a SuperNode that has died or is resident; call every few seconds."""
        with self._lock:
            invited, now = self._invitation is not None, self._clock()
            if self._stopped or not (invited or self._resident()):
                return
            if invited and now >= self._until and not self._busy():
                self._leave("its invitation has expired")
            elif self._child is not None and (code := self._child.poll()) is not None:
                self._bury(code)
            elif self._child is None and now >= self._start_at:
                self._start()

    def joined(self, node: int | None, error: str | None = None) -> None:
        """Note the node that the SuperNode has become, or the error for which it has not."""
        self.error = error if self._refused_s < math.inf else None
        self._refused_s = math.inf if error is None else min(self._refused_s, self._clock())
        self.node = node

    def stop(self) -> None:
        """End the SuperNode, for good."""
        with self._lock:
            self._stopped = True
            if self._child is not None or self._invitation is not None:
                self._leave("the agent is stopping")

    def _resident(self) -> bool:
        return self._joining.superlink is not None and self.unable is None

    def _accepted(self, value: bytes | None) -> Invitation | None:
        """Return an invitation that a trusted key signed; None if it is for other devices."""
        signed = SignedInvitation.decode(value)
        if f'"{self._device}"' not in signed.text:  # before the signature: most are for others
            return None
        invitation = signed.verified(self._trusted())
        if self._device not in invitation.devices:
            return None
        return invitation

    def _obstacle(self, invitation: Invitation) -> str | None:
        """Return why the device does not follow a signed invitation now; None if it does."""
        task, now_us = self._task, int(1e6 * self._wall())
        why = self._followed.refusal(invitation, task.name, task.version, now_us)
        if why is not None or invitation.ended:
            return why
        if self.unable is not None:
            return "unable"
        if not self._joining.allows(invitation.superlink):
            return "plain-text"
        if self.run not in (None, invitation.run, invitation.replaces):
            return "busy"
        return None

    def _follow(self, invitation: Invitation) -> None:
        """Steps 2 and 3."""
        if self._stopped:
            return
        self._followed = self._followed.after(invitation, int(1e6 * self._wall()))
        try:
            write_atomic(self._path, self._followed.encode())
        except OSError as exc:
            log.warning("%s was not written, a restart may follow again: %s", self._path, exc)
        before = self._invitation
        if invitation.ended or (before is not None and before.run != invitation.run):
            if before is not None and before.run in (invitation.run, invitation.replaces):
                self._leave("the run has ended")
            if invitation.ended:
                return
        self._until = self._clock() + invitation.lease_s
        self._invitation = invitation
        if before is None or before.run != invitation.run:
            log.info("%s: invited to run %s", self._device, invitation.run)
            self._deaths = 0
            if self._busy():
                self._interrupt()
            self._end_child()  # the resident one
            self._start()

    def _start(self) -> None:
        """Start the SuperNode of the run that the device is invited to, or the resident one."""
        invitation, joining = self._invitation, self._joining
        settings = NodeSettings(
            device=self._device,
            agent=str(self._socket),
            superlink=invitation.superlink if invitation else joining.superlink or "",
            runs=[int(invitation.run)] if invitation else [],
            ca=str(joining.ca or ""),
            key=str(joining.key or ""),
            pull_s=invitation.pull_s if invitation else RESIDENT_PULL_S,
        )
        home = {"FLWR_HOME": str(self._folder / "flower"), "OMP_NUM_THREADS": "1"}
        self._child = subprocess.Popen(
            command(settings), stdin=subprocess.PIPE, env={**os.environ, **home}
        )

    def _bury(self, code: int) -> None:
        """Plan the next start of a SuperNode that has died."""
        wait_s = min(AGAIN_S * 2**self._deaths, AGAIN_MOST_S)
        log.warning(
            "%s: the SuperNode ended with code %d; starting it again in %.0f s",
            self._device, code, wait_s,
        )  # fmt: skip
        self._deaths += 1
        if self._deaths > 1 and self._refused_s == math.inf:  # once is chance
            often = f"its SuperNode has ended {self._deaths} times, now with code {code}"
            self.error = f"cannot join runs: {often}: see the agent's log"
        self._forget_child()
        self._start_at = self._clock() + wait_s

    def _leave(self, why: str) -> None:
        """Step 4: end the SuperNode, and what it had the device do."""
        left = "the SuperLink" if self.run is None else f"run {self.run}"
        log.info("%s: leaving %s: %s", self._device, left, why)
        self._invitation = None
        if self._clock() - self._refused_s < KILLED_S:
            self.error = None  # a refusal in the next run is one at once, and stays
        self._end_child()
        if self._busy():
            self._interrupt()

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.terminate()
            try:
                self._child.wait(END_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._forget_child()

    def _forget_child(self) -> None:
        child, self._child, self.node = self._child, None, None
        if child is not None and child.stdin is not None:
            child.stdin.close()

    def _refuse(self, reason: str, detail: str) -> None:
        if not self.refused[reason]:
            log.warning("%s: an invitation is refused: %s: %s", self._device, reason, detail)
        self.refused[reason] += 1

    def _read(self) -> Followed:
        try:
            return Followed.decode(self._path.read_bytes())
        except FileNotFoundError:
            return Followed()
        except (OSError, MalformedRecord) as exc:
            log.warning("%s is ignored: %s", self._path, exc)
            return Followed()
