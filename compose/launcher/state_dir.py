"""What lies where in a state folder."""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from streams.contract.errors import UsageError


@dataclass(frozen=True)
class StateDir:
    """The state of one installation on one machine, `.tidewheel` by default."""

    state: Path

    @property
    def keys(self) -> Path:
        return self.state / "keys"

    @property
    def signing_key(self) -> Path:
        return self.keys / "signing.pem"

    @property
    def public_key(self) -> Path:
        return self.keys / "signing.pub"

    @property
    def registry(self) -> Path:
        return self.state / "registry"

    @property
    def store(self) -> Path:
        return self.state / "store"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def made_of(self) -> Path:
        """The digest of the task's sources and data that the first models were made of."""
        return self.state / "made-of"

    @property
    def last_seen(self) -> Path:
        """What `up` has seen of the topics, see compose.reports.follower."""
        return self.state / "last-seen.view"

    def trusted_keys(self) -> tuple[Path, ...]:
        """All public keys of the folder. Revoked keys are included, so that old history can still
        be verified."""
        return tuple(sorted(self.keys.glob("*.pub"))) or (self.public_key,)

    def device(self, name: str) -> Path:
        return self.state / "devices" / name

    def lock(self) -> IO[str]:
        """Make the folder and hold it for this process; UsageError when that cannot be."""
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            handle = (self.state / "lock").open("a+")
        except OSError as exc:
            raise UsageError(
                f"the state folder {self.state} cannot be written: {exc}: name another with --state"
            ) from exc
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            handle.close()
            raise UsageError(
                f"the state folder {self.state} is in use by process {holder}: "
                "stop it, or name another folder with --state"
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        return handle
