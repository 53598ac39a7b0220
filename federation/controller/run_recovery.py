"""The recovery of a run that died without a `finished` event: it is resumed exactly once, even if
processes die meanwhile. The only state on disk is

<folder>/lineage.json, replaced atomically: the runs that continue each other, oldest first, and
while another one is being submitted, the runs that the SuperLink had before.

    1 write which run died, why, and every run that the SuperLink knows
    2 submit a run that resumes the newest of these runs that has a checkpoint
    3 add the new run to the lineage
    4 publish on `rounds` that the new run was requested, and that the dead one has finished

After a crash in 1 a restart finds no new run at the SuperLink and submits one. After 2 it finds
that run and continues with 3; a run that someone starts manually at this moment is mistaken for it.
After 3 it publishes the events, possibly twice. After 4 nothing is left to do.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from federation.controller.flwr_cli import ConfigValue, Submission
from federation.rounds import checkpoint
from streams.contract.documents import Document
from streams.contract.errors import MalformedRecord
from streams.runtime.failpoints import Failpoint, unarmed
from streams.runtime.files import write_atomic

RESUMES = 3  # of one run; then recovery stops

log = logging.getLogger(__name__)


class RunRecovery(Document):
    """The file lineage.json. `runs`: each resumes the one before; `seen`: the SuperLink's runs at
    step 1, None from step 3 on; `reason`: why the last dead run died."""

    runs: list[str]
    seen: list[str] | None = None
    reason: str = ""


class Resumer:
    """Steps 1 to 3. `runs` is the folder of checkpoints, `config` the settings of a new run."""

    def __init__(
        self,
        folder: Path,
        runs: Path,
        submission: Submission,
        config: Mapping[str, ConfigValue],
        failpoint: Failpoint = unarmed,
    ) -> None:
        self._folder, self._runs, self._submission = folder, runs, submission
        self._config, self._reached = config, failpoint
        self.lineage: RunRecovery | None = None
        self.read()

    @property
    def pending(self) -> str | None:
        """The dead run whose recovery is between steps 1 and 3: another one may have been submitted
        and have begun already."""
        kept = self.lineage
        return kept.runs[-1] if kept is not None and kept.seen is not None else None

    @property
    def earlier(self) -> list[str]:
        """The runs that another one has resumed."""
        return self.lineage.runs[:-1] if self.lineage else []

    def read(self) -> None:
        """Take the lineage from disk, where another controller may have written it since."""
        self.lineage = self._read()

    def resume(self, run: str, reason: str, known: Mapping[str, str]) -> str | None:
        """Return the run that resumes the dead `run`; None after RESUMES times.

        known: the SuperLink's runs. Raises ProcessFailed if Flower accepts no run; try again later.
        """
        kept = self.lineage
        if kept is None or kept.runs[-1] != run:
            kept = RunRecovery(runs=[run])
        if len(kept.runs) > RESUMES:
            return None
        new = None
        if kept.seen is None:
            kept = RunRecovery(runs=kept.runs, seen=sorted(known), reason=reason)
            self._write(kept)
            self._reached("resume-step-1")
        else:
            new = next((other for other in known if other not in kept.seen), None)
        if new is None:
            config = {**self._config, "resume": self._newest_with_checkpoint(kept.runs)}
            new = self._submission.start(config, self._folder)
            self._reached("resume-step-2")
        self._write(RunRecovery(runs=[*kept.runs, new], reason=kept.reason))
        self._reached("resume-step-3")
        return new

    def forget(self, run: str) -> None:
        """Delete the lineage of `run`, which has finished."""
        if self.lineage is not None and self.lineage.runs[-1] == run:
            (self._folder / "lineage.json").unlink(missing_ok=True)
            self.lineage = None

    def _newest_with_checkpoint(self, runs: list[str]) -> str:
        """Return the newest run with a checkpoint: a run that died early has none."""
        with_one = (run for run in reversed(runs) if checkpoint.latest(self._runs, run))
        return next(with_one, runs[-1])

    def _write(self, lineage: RunRecovery) -> None:
        write_atomic(self._folder / "lineage.json", lineage.encode())
        self.lineage = lineage

    def _read(self) -> RunRecovery | None:
        path = self._folder / "lineage.json"
        try:
            found = RunRecovery.decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except MalformedRecord as exc:
            log.warning("%s is ignored: %s", path, exc)
            return None
        return found if found.runs else None
