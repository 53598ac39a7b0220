"""Taking up a run that died, once, whatever dies meanwhile.

<folder>/lineage.json, written whole or not at all: the runs that went on with each other, oldest
first, and while another one is being submitted, the runs that the SuperLink had before.

    1 write down which run died, why, and every run that the SuperLink knows
    2 submit a run that resumes the newest of these runs that has a checkpoint
    3 write the new run behind the others
    4 tell on `rounds` that the new run was requested, and that the dead one has finished

What a restart does after a crash: 1: it finds no run that the SuperLink had not, and submits one;
2: it finds that run and goes on with 3; a run that someone starts by hand just then is taken for
it; 3: it tells, which may be told twice; 4: nothing is left to do.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from federation.controller.flwr_cli import ConfigValue, Submission
from federation.rounds import checkpoint
from streams.contract.documents import Document
from streams.contract.errors import MalformedRecord
from streams.runtime.disk import write_atomic
from streams.runtime.failpoints import Failpoint, unarmed

log = logging.getLogger(__name__)

RESUMES = 3  # of one run; then it is given up


class RunRecovery(Document):
    """`runs`: each goes on with the one before; `seen`: what the SuperLink knew at step 1, None
    from step 3 on; `reason`: why the last but one, or while `seen` stands the last, is dead."""

    runs: list[str]
    seen: list[str] | None = None
    reason: str = ""


class Resumer:
    """Steps 1 to 3. `runs` holds the runs' checkpoints, `config` are the settings of a new run."""

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
        self.lineage = self._read()

    @property
    def earlier(self) -> list[str]:
        """The runs that another goes on with."""
        return self.lineage.runs[:-1] if self.lineage else []

    def resume(self, run: str, reason: str, known: Mapping[str, str]) -> str | None:
        """The run that goes on with the dead `run`; None when that has been done RESUMES times.

        known: the SuperLink's runs. ProcessFailed when Flower takes no run; to be tried again.
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
        """`run` has come to its end: nobody goes on with it."""
        if self.lineage is not None and self.lineage.runs[-1] == run:
            (self._folder / "lineage.json").unlink(missing_ok=True)
            self.lineage = None

    def _newest_with_checkpoint(self, runs: list[str]) -> str:
        """The newest run has none when it died before it had begun."""
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
            log.warning("%s is passed over: %s", path, exc)
            return None
        return found if found.runs else None
