"""Messages that were handed to the producer and are not settled."""

from collections.abc import Callable
from dataclasses import dataclass, field

from edge_client.spool.frames import Frame
from edge_client.uplink.messages import Message
from streams.contract.errors import MessageRefused


@dataclass
class BatchInFlight:
    """Messages in flight and the frames that they settle.

    `failed`: the batch is to be sent again. `refused`: messages that are never taken as they are.
    Answers come by the producer's thread, and by the uplink's if they are there at once: they are
    appended, which is safe in both, and counted.
    """

    frames: list[Frame]
    at: float
    messages: int
    size: int = 0
    failed: Exception | None = None
    refused: list[tuple[Message, MessageRefused]] = field(default_factory=list)
    answers: list[Message] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """The number of messages without an answer."""
        return self.messages - len(self.answers)

    def answer(self, message: Message) -> Callable[[Exception | None], None]:
        """Return what takes the producer's answer to one of the messages."""

        def answered(error: Exception | None) -> None:
            if isinstance(error, MessageRefused):
                self.refused.append((message, error))
            elif error is not None:
                self.failed = error
                return
            self.answers.append(message)  # first: a trace may not come before the delivery
            if error is None:
                message.span.end()

        return answered
