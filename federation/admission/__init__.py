"""What refuses an update: a NaN, a wrong shape, a norm that is too large, a replay.

update (`Update`, `Refusal`), admission (the checks, one reason a refusal), quarantine (strikes of a
node, and what was received before). Pure; knows nothing of Flower or Kafka.
"""
