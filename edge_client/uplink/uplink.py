"""From the spool to Kafka, in order, with bounded messages in flight.

1. read frames after the last one sent, as many as the rate limit allows (pacing.py)
2. join event frames into one events/2 message of at most 512 rows and BYTES bytes; DROPS frames
   become one message per declaration, after merging adjacent ones of the same reason
3. pass the message to the producer; at most IN_FLIGHT messages of IN_FLIGHT_BYTES are in flight
4. when the broker has acknowledged a message and all before it, settle its frames in the spool

A message that the broker refuses for good, because it is too large, is sent in smaller ones, and
an event that is refused alone is declared dropped in its place (messages.py).

A crash in 1 or 2 reads the same frames again; their files count as begun and are not dropped. A
crash after 3 sends unsettled frames again; the worker finds their rows sealed. If nothing is
acknowledged for STALL_S, the producer is replaced and sending restarts after the last settled
frame. A thread that has not come back for HANG_S `hangs`: the agent ends.

The rate limit counts keys, values and headers before compression, without the producer's retries.
It does not delay heartbeats, but these become rare enough to use a tenth of it.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from edge_client.spool.frames import Frame
from edge_client.spool.queue import Spool
from edge_client.uplink.messages import BYTES, BatchInFlight, Messages, Refusals, groups
from edge_client.uplink.pacing import EVERY_S, Heartbeat, TokenBucket
from streams.contract.documents import DeviceState
from streams.contract.errors import BrokerUnavailable, MessageRefused
from streams.contract.topics import EVENTS, FLEET, topic_name
from streams.runtime.failpoints import Failpoint, unarmed

if TYPE_CHECKING:  # Kafka's library, which the first answer does not wait for
    from streams.kafka.producer import Sender

log = logging.getLogger(__name__)

IN_FLIGHT, IN_FLIGHT_BYTES = 64, 16_000_000
STALL_S = 20.0
LATE_S = 1.0
HANG_S = 60.0  # longer than the library and a full disk may keep the thread
POLL_S = 1.0  # at most, where the spool has not grown
SOON_S = 0.02  # the same while several messages are in flight or many events come
AGAIN_S = 0.2  # before what was refused is sent in another way
LOOKING_S = 0.3  # how long stop() waits for the thread while it has no broker
HEARTBEAT_SHARE = 0.1  # of the rate limit, at most


class Uplink(threading.Thread):
    """Sends what `messages` makes of the spool's frames to the topics of the task version with the
    id `task`, and the device's `state`, if there is one: every `heartbeat_s`, and when its `news`,
    which are asked for each second, have changed.

    `bytes_per_s` is the rate limit.
    """

    def __init__(
        self,
        task: str,
        device: str,
        spool: Spool,
        messages: Messages,
        connect: "Callable[[], Sender]",
        state: Callable[[], DeviceState] | None = None,
        *,
        news: Callable[[], object] = lambda: None,
        bytes_per_s: int | None = None,
        heartbeat_s: float = EVERY_S,
        stall_s: float = STALL_S,
        clock: Callable[[], float] = time.monotonic,
        failpoint: Failpoint = unarmed,
    ) -> None:
        super().__init__(name="uplink", daemon=True)
        self._task, self._device, self._spool = task, device, spool
        self._connect = connect
        self._state, self._news = state, news
        self._stall_s, self._clock = stall_s, clock
        self._reached = failpoint
        self._rate_limit = TokenBucket(bytes_per_s, clock)
        self._refusals = Refusals(clock)
        self._messages = messages
        self._ending = threading.Event()
        self._sender: Sender | None = None
        self._next = spool.position
        self._flight: deque[BatchInFlight] = deque()
        self._flight_bytes = 0
        self._ready: deque[list[Frame]] = deque()  # read, not yet sent
        self._busy = False  # many events came: poll again soon
        self._draining = False
        self._beat = Heartbeat(heartbeat_s)
        self._heartbeat_at: float | None = None  # when the one was sent that is in flight
        self._backoff_s = 0.2
        self.connected = False
        self.error: str | None = None
        self._logged: set[str] = set()  # errors of this outage
        self._back_at = clock()

    @property
    def is_late(self) -> bool:
        """Whether events wait for the line: none was acknowledged for LATE_S."""
        with suppress(IndexError):  # the thread settles them meanwhile
            return self._clock() - self._flight[0].at > LATE_S
        return False

    @property
    def hangs(self) -> bool:
        """Whether the thread has not come back for HANG_S from the library, the disk or the state;
        what it waits for by itself is never so long."""
        return self.is_alive() and self._clock() - self._back_at > HANG_S

    def run(self) -> None:
        while not self._ending.is_set():
            self._back_at = self._clock()
            try:
                self._spool.grown.clear()
                if not self.step():
                    self._pause()
            except MessageRefused as exc:
                log.warning("%s", exc)
                self._close()  # what follows a refused message of a producer is out of sequence
                self._ending.wait(AGAIN_S)
            except BrokerUnavailable as exc:
                self._wait_for_broker(str(exc))
            except OSError as exc:  # a full disk: the cursor is saved later
                self.error = f"spool: {exc}"
                log.warning("%s: the spool's position is not saved: %s", self._device, exc)
                self._ending.wait(POLL_S)
        self._send_last_state()

    def _pause(self) -> None:
        """Wait for more to send; the loop stops soon after `stop`, and looks often before."""
        if len(self._flight) > 1 or self._busy or self._draining:
            self._ending.wait(SOON_S)
        else:
            limited = self._rate_limit.bytes_per_s is not None  # it lets a second's bytes wait
            self._spool.grown.wait(POLL_S / 2 if limited else POLL_S)

    def stop(self, drain_s: float) -> bool:
        """Send pending events for at most `drain_s`, then end; return whether none is left."""
        self._draining = True
        self._spool.grown.set()
        deadline = time.monotonic() + drain_s
        while self._spool.account().pending and time.monotonic() < deadline:
            time.sleep(0.05)
        drained = self._spool.account().pending == 0
        self._ending.set()
        self._spool.grown.set()
        self.join(5.0 if self.connected else LOOKING_S)
        return drained

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Report every second while the device works for a round."""
        self._beat.work()
        try:
            yield
        finally:
            self._beat.rest(self._clock())

    def report(self) -> None:
        """Send the state now; called by other threads."""
        self._beat.at_once()
        self._spool.grown.set()

    def step(self) -> bool:
        """Run the four steps once; return whether more can be sent at once."""
        if self._sender is None:
            self._sender = self._connect()
            self._next = self._spool.position
            self._flight.clear()
            self._ready.clear()
            self._flight_bytes = 0
            self._heartbeat_at = None
            self._beat.at_once()
            self._backoff_s = 0.2
        self.connected, self.error, self._logged = True, None, set()
        self._settle()
        self._heartbeat()
        more = True
        while more and not self._full:
            more = self._forward()
        self._watch()
        return more and not self._full

    @property
    def _full(self) -> bool:
        """Whether the limit of messages in flight is reached."""
        return len(self._flight) >= IN_FLIGHT or self._flight_bytes >= IN_FLIGHT_BYTES

    def _forward(self) -> bool:
        """Run steps 1 to 3 once; return whether more may be sent now."""
        allowed = self._rate_limit.allowance(BYTES)
        if not allowed:
            return False
        more = True
        if not self._ready:
            frames = self._spool.read(self._next, allowed)
            if frames:
                self._reached("uplink-step-1")
            size = sum(len(frame.payload) for frame in frames)
            self._busy, more = size > BYTES / 8, size >= allowed
            self._ready.extend(groups(frames, self._refusals.rows))
        while self._ready and not self._full:
            self._send(self._ready.popleft())
        return more and not self._full

    def _send(self, frames: list[Frame]) -> None:
        """Run steps 2 and 3 for the frames of one message."""
        messages = self._messages(frames, self._refusals)
        self._reached("uplink-step-2")
        size = sum(message.size for message in messages)
        entry = BatchInFlight(frames, self._clock(), len(messages), size)
        self._flight.append(entry)
        self._flight_bytes += size
        self._next = frames[-1].end
        topic = topic_name(self._task, EVENTS)
        assert self._sender is not None
        for message in messages:
            self._rate_limit.take(message.size)
            answered = entry.answer(message)
            try:
                self._sender.send(topic, *message.wire, answered)
            except MessageRefused as exc:  # by the library: too large for any broker
                answered(exc)
        self._reached("uplink-step-3")

    def _settle(self) -> None:
        """Run step 4, in order; raise BrokerUnavailable if a message failed, MessageRefused if it
        is sent in another way from now on."""
        done: list[Frame] = []
        while self._flight and (self._flight[0].missing == 0 or self._flight[0].failed):
            entry = self._flight[0]
            if entry.failed or entry.refused:
                self._settle_frames(done)
                self._note_refusals(entry)
            self._flight_bytes -= entry.size
            done += self._flight.popleft().frames
        if done:
            self._settle_frames(done)
            self._reached("uplink-step-4")

    def _settle_frames(self, frames: list[Frame]) -> None:
        refused = self._refusals.settle(frames)
        self._spool.settle(frames, refused)
        if refused:
            log.error(
                "%s: %d events that the broker refuses are dropped (%s)",
                self._device, len(refused), ", ".join(sorted({d.reason for d in refused})),
            )  # fmt: skip

    def _note_refusals(self, failed: BatchInFlight) -> None:
        """Note all refusals in flight; always raises."""
        text = f"a batch was not taken: {failed.failed or failed.refused[0][1]}"
        mended = [(m, exc) for each in self._flight for m, exc in each.refused if not m.declares]
        for message, exc in mended:
            self._refusals.note(message.first, message.last, exc.reason)
        if failed.failed or not mended:  # a declaration cannot be made smaller: wait
            raise BrokerUnavailable(text)
        raise MessageRefused(mended[0][1].reason, text)

    def _heartbeat(self) -> None:
        now = self._clock()
        if not self._rate_limit.allowance(BYTES) or self._heartbeat_at is not None:
            return  # in an outage one waits, not one a second
        if not self._beat.looks(now) or not self._beat.due(self._news(), now):
            return
        self._spool.sync_position()
        if self._state is None:
            return
        assert self._sender is not None
        state = self._state().replace(heartbeat_s=self._beat.interval_s)
        topic = topic_name(self._task, FLEET)
        key, value = self._device.encode(), state.encode()
        if self._rate_limit.bytes_per_s is not None:
            size = len(key) + len(value)
            self._rate_limit.take(size)
            self._beat.pause(now, size / (self._rate_limit.bytes_per_s * HEARTBEAT_SHARE))
        self._heartbeat_at = now
        self._sender.send(topic, key, value, [], self._heartbeat_done)

    def _heartbeat_done(self, _error: Exception | None) -> None:
        self._heartbeat_at = None

    def _watch(self) -> None:
        waiting = [at for at in (self._heartbeat_at,) if at is not None]
        waiting += [self._flight[0].at] if self._flight else []
        if waiting and self._clock() - min(waiting) > self._stall_s:
            raise BrokerUnavailable(
                f"nothing was acknowledged for {self._stall_s:.0f} s: replacing the producer"
            )

    def _wait_for_broker(self, text: str) -> None:
        if text not in self._logged:
            self._logged.add(text)
            log.warning("%s; events wait in the spool", text)
        self.connected, self.error = False, text
        self._close()
        self._ending.wait(self._backoff_s * random.uniform(0.5, 1.5))
        self._backoff_s = min(self._backoff_s * 2, 5.0)

    def _send_last_state(self) -> None:
        """Send the last state and close the producer, waiting for messages in flight."""
        with suppress(OSError):  # what was settled since is sent again
            self._spool.sync_position()
        if self._sender is None:
            return
        self._heartbeat_at = None
        self._beat.at_once()
        try:
            self._heartbeat()
            self._sender.close(2.0)
        except (BrokerUnavailable, OSError) as exc:
            log.warning("%s; events wait in the spool", exc)

    def _close(self) -> None:
        sender, self._sender = self._sender, None
        if sender is None:
            return
        # closing a producer in an outage blocks: do it elsewhere
        threading.Thread(target=_close_quietly, args=(sender,), daemon=True).start()


def _close_quietly(sender: "Sender") -> None:
    try:
        sender.close(1.0)
    except BrokerUnavailable as exc:
        log.debug("closing the producer: %s", exc)
