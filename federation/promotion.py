"""Making a version of what a run has learned: sign, keep, serve, announce; in this order, so that
what is announced is kept. The steps are those of rounds.py."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation import release
from federation.evaluation import Verdict
from federation.exchange import Tensors
from federation.journal import Journal
from federation.probe import renew_probe
from federation.registry import Registry
from streams.contract.artifact import PROBE, WEIGHTS, Artifact, Manifest, pack
from streams.contract.errors import BrokerUnavailable
from streams.contract.failpoints import Failpoint
from streams.contract.task import Task


@dataclass(frozen=True)
class Promotion:
    """Of one run's task, by one key, into one registry."""

    task: Task
    registry: Registry
    key: Ed25519PrivateKey
    journal: Journal
    failpoint: Failpoint

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
        """Steps 7 to 9."""
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
            WEIGHTS: safetensors.numpy.save(weights),
            PROBE: renew_probe(base, weights),
        }
        artifact = self.registry.add(pack(manifest, files, self.key))
        self.failpoint("round-step-7")
        self.registry.set_serving(artifact.model)
        self.failpoint("round-step-8")
        reason = self.announce(artifact.model, verdict.reason)
        self.failpoint("round-step-9")
        self.journal.publish(
            "promoted",
            round=rounds,
            rounds=rounds,
            base=base.model,
            model=artifact.model,
            reason=reason,
            metrics=metrics,
        )

    def announce(self, model: str, reason: str) -> str:
        """Offer the model to the fleet; the reason, with what kept it from being offered."""
        try:
            release.announce(self.journal.producer(), self.registry, model, reason)
        except BrokerUnavailable as exc:
            return f"{reason}; not announced yet: {exc}"
        return reason
