"""The fleet as its topics tell it: `view` sums messages up, `timeline` says what happened,
`following` publishes snapshots, starts from the last one and goes on with the topics.
"""
