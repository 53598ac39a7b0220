"""Who takes part in a round: the devices that are invited, the wait for those, and the nodes that
get work.

1. pick devices by their last states on `fleet`, at most 60 s old: enough samples, not held back,
   able to train, not refusing the base, with the base where a part of the weights travels; first
   those without a metered line, then those whose last run is longer ago, then by the seed; a
   device in the run stays in it
2. publish a signed invitation for those that have not been invited
3. wait until they have joined, at most 30 s once `minimum-nodes` have; publish `invited`
4. at the end publish `ended`

After a kill of the run SuperNodes leave when their lease ends, or follow the run that resumes it.
An agent's SuperNode ends with it; the device joins at the next repetition. A killed SuperNode is
restarted by its agent, and a message that it had is not answered. Without a broker, or while the
SuperLink is away, SuperNodes continue until their lease ends.

An invitation (streams.contract.invitations) is repeated every REPEAT_S with a lease of LEASE_S, so
that a device takes part as long as the run lasts, and LEASE_S at most after the server has died.
The end is said once; a device that does not receive it leaves when its lease ends.

The samplings are pure, from device states on `fleet`. A node without a recent state may be chosen:
it replies with an error if it cannot train.
"""

import logging
import math
import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.rounds.aggregator import Aggregator
from federation.rounds.collector import QUORUM, Collector, Fleet, Policy
from federation.rounds.event_log import EventLog
from federation.rounds.fleet_reports import FRESH_S, FleetReports
from federation.rounds.settings import RunSettings
from streams.contract.documents import DeviceState
from streams.contract.errors import BrokerUnavailable, ProcessFailed
from streams.contract.invitations import NAMES, Invitation, sign_invitation
from streams.contract.task import MINIMUM_SAMPLES, Task
from streams.contract.topics import INVITATIONS, topic_name
from streams.kafka.producer import Producer

GOING = ("draining", "stopped")
LATELY_US = 600_000_000


def unfit(state: DeviceState, base: str, *, part: bool = False) -> str | None:
    """Return why a device need not get work; None if it may. part: the base has what a round does
    not carry."""
    if state.unable is not None:
        return state.unable
    if state.samples < MINIMUM_SAMPLES:
        return f"{state.samples} samples, {MINIMUM_SAMPLES} are needed"
    if state.held_back is not None:
        return f"held back: {state.held_back}"
    if base in state.refused:
        return f"refused {base}: {state.refused[base]}"
    if part and base not in (state.active, state.previous):
        return f"has {state.active}, and a part of {base} is sent"
    if state.phase in GOING:
        return state.phase
    return None


def to_invite(
    states: Sequence[DeviceState],
    base: str,
    count: int,
    least: int,
    seed: int,
    *,
    part: bool = False,
) -> list[str]:
    """Return the devices that a round wants: `count` (0 for all) of those that may get work. Those
    on a metered line come last, then those that were invited to a run of late (in steps of
    LATELY_US); at random otherwise. If fewer than `least` may get work, the others that are not
    about to end are wanted as well."""
    here = [s for s in states if s.phase not in GOING and s.unable is None]
    fit = [s for s in here if unfit(s, base, part=part) is None]
    found = sorted(fit if len(fit) >= least else here, key=lambda s: s.device)
    if count and count < len(found):
        random.Random(seed).shuffle(found)
        found = sorted(found, key=_burden)[:count]  # sorted is stable
    return sorted(s.device for s in found)


def _burden(state: DeviceState) -> tuple[bool, int]:
    """Return by what a device is preferred, least first. One that is in the run now stays in it."""
    last_us = 0 if state.run is not None else state.last_run_us or 0
    return state.metered, last_us // LATELY_US


def choose(
    nodes: Sequence[int],
    said: Mapping[int, DeviceState],
    base: str,
    count: int,
    seed: int,
    wanted: Collection[str] = (),
) -> list[int]:
    """Return `count` of `nodes` (0 for all) at random, preferring the `wanted` devices, and then
    those that serve `base` or have no state."""
    if not count or count >= len(nodes):
        return list(nodes)
    drawn = random.Random(seed).sample(sorted(nodes), len(nodes))

    def rank(node: int) -> tuple[bool, bool]:
        if (state := said.get(node)) is None:
            return False, False
        return bool(wanted) and state.device not in wanted, state.active != base

    return sorted(sorted(drawn, key=rank)[:count])  # sorted is stable


# --- participants ---------------------------------------------------------------------------------

log = logging.getLogger(__name__)

NAMED = 3  # of those that have not joined
NODE_POLL_S = 0.2
JOIN_S = 30.0  # for invited devices to join, where enough others have
CHOOSE_S = 3.0  # between two looks for more devices where too few have joined
REPEAT_S, LEASE_S = 60.0, 300.0
RETRY_S = 5.0  # after the broker was unavailable
SEND_TIMEOUT_S = 5.0
PULLS_PER_S = 100.0  # of all devices of a run; a SuperLink's core answers about 300
PULL_S = 0.3  # a device's, where they are few


class Inviter:
    """Invites devices to `run`, whose SuperLink they reach at `superlink`; `replaces` is the run
    that this one resumes. `producer` may raise BrokerUnavailable; `clock` in seconds."""

    def __init__(
        self,
        task: Task,
        run: str,
        superlink: str,
        key: Ed25519PrivateKey,
        producer: Callable[[], Producer],
        replaces: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._task, self._run, self._superlink, self._key = task, run, superlink, key
        self._producer, self._replaces, self._clock = producer, replaces, clock
        self._issued_us = 0
        self._repeat_at = float("inf")
        self.invited: set[str] = set()

    def invite(self, devices: Iterable[str]) -> None:
        """Invite those of `devices` that are not yet invited."""
        fresh = set(devices) - self.invited
        if fresh:
            self.invited |= fresh
            self._publish(sorted(fresh), ended=False)

    def repeat_if_due(self) -> None:
        """Repeat the invitation to all; call every second or so."""
        if self._clock() >= self._repeat_at:
            self._publish(sorted(self.invited), ended=False)

    def end(self) -> None:
        """Say that the run is over."""
        if self.invited:
            self._publish(sorted(self.invited), ended=True)

    def _publish(self, devices: list[str], *, ended: bool) -> None:
        self._repeat_at = self._clock() + REPEAT_S
        topic = topic_name(self._task.id, INVITATIONS)
        try:
            producer = self._producer()
            for at in range(0, len(devices), NAMES):
                signed = sign_invitation(
                    self._invitation(devices[at : at + NAMES], ended), self._key
                )
                producer.put(topic, self._run.encode(), signed.encode(), None, SEND_TIMEOUT_S)
        except BrokerUnavailable as exc:
            then = "leave when their lease ends" if ended else "are invited again later"
            log.warning("%s; %d devices %s", exc, len(devices), then)
            self._repeat_at = self._clock() + RETRY_S

    def _invitation(self, devices: list[str], ended: bool) -> Invitation:
        self._issued_us = max(time.time_ns() // 1000, self._issued_us + 1)
        return Invitation(
            task=self._task.name,
            task_version=self._task.version,
            run=self._run,
            superlink=self._superlink,
            devices=devices,
            issued_us=self._issued_us,
            lease_s=LEASE_S,
            pull_s=max(PULL_S, len(self.invited) / PULLS_PER_S),
            replaces=self._replaces,
            ended=ended,
        )


@dataclass
class Participants:
    """`reports` and `inviter` are None where a run has no Kafka, or devices have SuperNodes that
    are resident; then those that are online take part."""

    task: Task
    settings: RunSettings
    policy: Policy
    fleet: Fleet
    collector: Collector
    journal: EventLog
    aggregator: Aggregator
    reports: FleetReports | None = None
    inviter: Inviter | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _wanted: list[str] = field(default_factory=list)  # devices of the round
    _absent: set[str] = field(default_factory=set)  # late in the round before: not waited for

    def wait(self, number: int, base: str) -> list[int]:
        """Invite the devices that the round wants; return the online nodes once the invited devices
        have joined or had JOIN_S, in one round of the run, and enough nodes are online and free.

        Busy nodes become free when their work expires, so that is waited for. Each node whose
        device is silent lowers the number of free ones, down to half of `minimum-nodes`. Raises
        ProcessFailed if too few nodes come online.
        """
        began = self.clock()
        needed = max(self.settings.minimum_nodes, self.aggregator.least)
        self._invite(number, base)
        choose_at = began + CHOOSE_S
        while True:
            nodes, now = self.fleet.nodes(), self.clock()
            late = self._late(nodes)
            awaited = self._absent.issuperset(late) or now > began + JOIN_S
            if self._enough(nodes, needed) and awaited:
                self._absent = set(late)
                self._announce(number, base, late)
                return nodes
            if len(nodes) < needed and now > began + self.settings.node_wait_s:
                what = "start more, or lower minimum-nodes"
                if self.reports is not None and self.reports.away:  # so nobody could be invited
                    what = self.reports.away
                elif needed == self.aggregator.least:
                    what = f"start more, or choose another strategy than {self.aggregator.name}"
                raise ProcessFailed(f"{len(nodes)} devices are online, {needed} are needed: {what}")
            if len(nodes) < needed and now > choose_at:
                self._invite(number, base)
                choose_at = now + CHOOSE_S
            self.sleep(NODE_POLL_S)

    def _enough(self, nodes: list[int], needed: int) -> bool:
        """Return whether enough nodes are online and free or, in a buffered run, busy."""
        free = self.collector.free(nodes)
        if len(nodes) < needed:
            return False
        if self.policy.buffered or len(free) >= needed:
            return True
        silent = len(nodes) - len(self.collector.heard(nodes))
        return len(self.collector.heard(free)) >= max(needed - silent, self._fewest)

    def _invite(self, number: int, base: str) -> None:
        """Invite the devices that the round wants, where devices can be invited."""
        if self.inviter is None or self.reports is None:
            return
        self._wanted = to_invite(
            self.reports.states(FRESH_S),
            base,
            self.policy.asked,
            self.settings.minimum_nodes,
            self.settings.seed_of(number),
            part=self._part,
        )
        self.inviter.invite(self._wanted)

    def _late(self, nodes: list[int]) -> list[str]:
        """Return the invited devices that have not joined."""
        if not self._wanted or self.reports is None:
            return []
        joined = {s.device for node, s in self.reports.by_node().items() if node in nodes}
        return [device for device in self._wanted if device not in joined]

    def _announce(self, number: int, base: str, late: list[str]) -> None:
        wanted = self._wanted
        if not wanted:
            return
        came = len(wanted) - len(late)
        metrics = {"invited": len(wanted), "joined": came, "late": len(late)}
        reason = f"{came} of {len(wanted)} invited devices joined"
        if late:
            more = f" and {len(late) - NAMED} more" if len(late) > NAMED else ""
            reason += f"; not yet: {', '.join(late[:NAMED])}{more}"
        self.journal.publish(
            "invited", round=number, rounds=self.settings.rounds, base=base, reason=reason[:300],
            metrics={name: float(n) for name, n in metrics.items()},
        )  # fmt: skip

    def asked(self, online: list[int], number: int, base: str) -> list[int]:
        """Return the nodes that get work in this round: none whose device is silent, unless too few
        are left. If too few report that they can train, the others are asked as well: a node that
        cannot train replies with an error."""
        free = self.collector.free(online)
        heard = self.collector.heard(free)
        free = heard if len(heard) >= self._fewest else free
        said = self.reports.by_node() if self.reports is not None else {}
        fit = [n for n in free if n not in said or not unfit(said[n], base, part=self._part)]
        fit = fit if len(fit) >= min(self.settings.minimum_nodes, len(free)) else free
        count, seed = self.policy.asked, self.settings.seed_of(number)
        return choose(fit, said, base, count, seed, self._wanted)

    @property
    def _part(self) -> bool:
        """Whether a round carries a part of the weights."""
        training = self.task.training
        return bool(training.train_only or training.shared or training.lora)

    @property
    def _fewest(self) -> int:
        """The nodes with which a round begins where the devices of the others are silent."""
        return max(math.ceil(QUORUM * self.settings.minimum_nodes), self.aggregator.least)
