"""Sampling of events on a metered connection: a share of all events is sent.

Events that are not sent are dropped, with the reason `metered`, and counted in the account
(produced = delivered + dropped + pending). Design:

1. The writer decides once per event, when it assigns the seq. The sample depends on the seq, so it
   is reproducible; a later decision could differ after a crash or a change of the setting.
2. A run of such events is one DROPS frame of fresh seqs between the EVENTS frames, so seqs have no
   gap, the reader settles it like other frames, and a restart finds it. There is no other state.
3. A run ends at an event that is sent, after HOLD_S, or at HOLD_ROWS. Until then it is in memory.
   A crash loses it: its seqs were not assigned, so the events were never produced; a replay
   produces them again, because the mark is that of the last written event.

A crash at any step of 2 leaves a complete frame, or a torn one, which is truncated.
"""

REASON = "metered"
HOLD_S, HOLD_ROWS = 5.0, 1000


def sampled(seq: int, share: float) -> bool:
    """Return whether a seq is in the sample; a larger share contains every smaller one."""
    return mixed(seq) < share * 2**64


def mixed(seq: int) -> int:
    """Return the SplitMix64 hash, 64 bits, of a number (Steele, Lea and Flood, 2014)."""
    z = (seq + 1) * 0x9E3779B97F4A7C15 & 2**64 - 1
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
    z = (z ^ z >> 27) * 0x94D049BB133111EB & 2**64 - 1
    return z ^ z >> 31
