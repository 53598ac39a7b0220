"""Making a version of what a run has learned: sign, keep, decide, tell; in this order, so that
what is decided on is kept. The steps are those of rounds.py."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.admission.update import Tensors
from federation.bootstrap.self_test import renew_probe
from federation.evaluation.promotion_gate import Verdict
from federation.registry.registry import Registry, Stale
from federation.rounds.event_log import EventLog
from streams.contract import payload
from streams.contract.artifact import PROBE, WEIGHTS, Artifact, Manifest, pack
from streams.contract.decisions import Ref
from streams.contract.task import Task
from streams.runtime.failpoints import Failpoint

ATTEMPTS = 5


@dataclass(frozen=True)
class Promotion:
    """Of one run's task, by one key, into one registry. Without `rollout` there is no controller to
    move it: all devices are to serve what has passed the gate."""

    task: Task
    registry: Registry
    key: Ed25519PrivateKey
    journal: EventLog
    failpoint: Failpoint
    rollout: bool = True

    def promote(
        self,
        weights: Tensors,
        base: Artifact,
        verdict: Verdict,
        metrics: dict[str, float],
        counts: Mapping[str, int],
        *,
        run: str,
        rounds: int,
    ) -> None:
        """Steps 7 and 8, and what is told of them."""
        manifest = Manifest(
            task=self.task.name,
            task_version=self.task.version,
            number=self.registry.next_number(),
            base=base.model,
            run=run,
            round=rounds,
            created_us=time.time_ns() // 1000,
            metrics=metrics,
            admitted=counts["admitted"],
            refused=counts["refused"],
            key="",
            files=[],
        )
        files = {  # graph and reference for drift stay
            **base.files,
            WEIGHTS: payload.to_safetensors(weights, self.task.training.payload),
            PROBE: renew_probe(base, weights),
        }
        artifact = self.registry.add(pack(manifest, files, self.key))
        self.failpoint("round-step-7")
        self._decide(artifact, verdict.reason, metrics, run)
        self.failpoint("round-step-8")
        self.journal.publish(
            "promoted",
            round=rounds,
            rounds=rounds,
            base=base.model,
            model=artifact.model,
            reason=verdict.reason,
            metrics=metrics,
        )

    def _decide(
        self, artifact: Artifact, reason: str, evidence: Mapping[str, float], run: str
    ) -> None:
        """One that waits already gives way: it was made of the same base, and earlier."""
        if not self.rollout:
            self.registry.serve(artifact.model, self.key, reason, evidence=evidence, run=run)
            return
        ref = Ref(model=artifact.model, digest=artifact.digest)
        for _ in range(ATTEMPTS):
            after = self.registry.last()
            standing = self.registry.standing().model_copy(update={"candidate": ref})
            try:
                self.registry.decide(
                    self.key, "candidate", standing, after,
                    model=artifact.model, reason=reason, evidence=evidence, run=run,
                )  # fmt: skip
            except Stale:
                continue
            return
        raise Stale(f"{ATTEMPTS} decisions in a row were made by somebody else")
