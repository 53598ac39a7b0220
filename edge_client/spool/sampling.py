"""What a device on a line that costs money sends of its events.

    everything   all of them
    sampled      a share of them: those whose seq falls below it by a hash
    uncertain    those whose largest softmax is below `uncertain_below`, and those with a label;
                 where the task has targets, which have no softmax: those with a label, and a share
    nothing      none for now: all of them wait in the spool

What is held back is dropped for good, with the reason `metered`, and the account says so: produced
= delivered + dropped + pending. Design:

1. The recorder decides, once for each event, when it gives the event its seq: an event has to know
   its seq (the sample is by seq, so anyone can tell which seqs a sample has), and what is decided
   later could be decided twice, differently, around a crash or a change of the setting.
2. A run of events that are held back is one frame of declared drops, of fresh seqs: it is written
   and synced in the spool in its place between the events, so seqs have no hole, the reader settles
   it as it settles any other frame, and a restart finds it. There is no other state.
3. A run ends with an event that is sent, after HOLD_S, or at HOLD_ROWS. Until then it is a number
   in memory. A crash forgets it: its seqs were not handed out, so those events were never produced;
   a recording gives them again, for the frame also has the time of the last one as its mark.
4. `nothing` decides nothing of the kind: events are written whole and the uplink does not read
   them, so another setting at the next start sends them all. It makes use of the spool's cap.

A crash at any step of 2 leaves a whole frame, which counts, or a torn one, which is cut off.

A window's report counts the events that were sent: under `uncertain` those are the hard ones, and
agreement with the teacher is lower than the fleet's.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from streams.contract.task import Task

SamplingMode = Literal["everything", "sampled", "uncertain", "nothing"]

REASON = "metered"
HOLD_S, HOLD_ROWS = 5.0, 1000


@dataclass(frozen=True)
class Sampling:
    """The device's setting; see the module's text."""

    mode: SamplingMode = "everything"
    share: float = 0.1
    uncertain_below: float = 0.8

    def sends(self, task: Task, seq: int, outputs: np.ndarray, labelled: bool) -> bool:
        """Whether the event `seq` with these outputs (outputs,) is sent."""
        if self.mode == "sampled":
            return sampled(seq, self.share)
        if self.mode == "uncertain":
            if labelled:
                return True
            if task.targets:
                return sampled(seq, self.share)
            return confidence(outputs) < self.uncertain_below
        return True


def sampled(seq: int, share: float) -> bool:
    """Whether a seq is in the sample; a larger share only adds to a smaller one."""
    return _mixed(seq) < share * 2**64


def _mixed(seq: int) -> int:
    """The output function of SplitMix64 (Steele, Lea and Flood, 2014): neighbours fall apart."""
    z = (seq + 1) * 0x9E3779B97F4A7C15 & 2**64 - 1
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
    z = (z ^ z >> 27) * 0x94D049BB133111EB & 2**64 - 1
    return z ^ z >> 31


def confidence(outputs: np.ndarray) -> float:
    """The largest softmax of (outputs,)."""
    return float(1 / np.exp(outputs.astype(np.float64) - outputs.max()).sum())
