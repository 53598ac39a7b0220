"""Admission of updates: refuses NaNs, wrong shapes, too large norms, replays.

update (`Update`, `Refusal`), admission (the checks, one reason per refusal; strikes of nodes,
digests of received updates). Pure; knows nothing of Flower or Kafka.
"""
