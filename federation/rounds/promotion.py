"""Promotion of a run's weights to a candidate: sign, store, decide, publish, in this order, so that
only stored versions are decided on. The steps are those of run.py."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.admission import Tensors
from federation.evaluation.promotion_gate import Verdict
from federation.evaluation.quantization import Quantizer
from federation.registry.manual import propose
from federation.registry.registry import Registry
from federation.rounds.event_log import EventLog
from streams.contract.artifact import LEARNED, WEIGHTS, Artifact, Manifest, key_id, pack
from streams.contract.errors import ProcessFailed
from streams.contract.task import Task
from streams.contract.weights import payload
from streams.contract.weights.part import SUFFIX, Part
from streams.runtime.failpoints import Failpoint


@dataclass(frozen=True)
class Promotion:
    """Promotes the candidate of one run. Without `rollout` there is no controller to roll it out:
    all devices serve it at once."""

    task: Task
    registry: Registry
    key: Ed25519PrivateKey
    journal: EventLog
    failpoint: Failpoint
    rollout: bool = True

    def check_key(self) -> None:
        """Raise ProcessFailed if the key was revoked since the run began: devices would refuse
        what it signs."""
        signer = key_id(self.key.public_key())
        if signer in self.registry.desired().revoked:
            raise ProcessFailed(
                f"key {signer}, with which this run signs, was revoked meanwhile; the next run "
                "signs with the key in use: start it with `tidewheel train`, or wait for the cause"
            )

    def promote(
        self,
        carried: Part,
        learned: Tensors,
        base: Artifact,
        verdict: Verdict,
        metrics: dict[str, float],
        counts: Mapping[str, int],
        quantizer: Quantizer,
        *,
        run: str,
        rounds: int,
    ) -> None:
        """Run steps 7 and 8, and publish the event."""
        self.check_key()
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
        weights, kind = carried.whole(learned), self.task.training.payload
        files = dict(base.files)  # the graph and the drift reference are the base's
        files.pop(LEARNED, None)
        if any(name.endswith(SUFFIX) for name in learned):
            files = {LEARNED: payload.to_safetensors(learned, kind), **files}
        files[WEIGHTS] = payload.to_safetensors(weights, kind)
        files = quantizer.release(files, weights)
        artifact = self.registry.add(pack(manifest, files, self.key))
        self.failpoint("round-step-7")
        if self.rollout:
            propose(self.registry, self.key, artifact, verdict.reason, metrics, run)
        else:
            self.registry.serve(artifact.model, self.key, verdict.reason, evidence=metrics, run=run)
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
