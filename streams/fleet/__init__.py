"""The fleet as its topics tell it: `view` sums messages up, `timeline` says what happened,
`snapshot` writes both down, `following` starts from the last snapshot and goes on with the topics.
"""
