"""A device's samples to learn from, their labels, and its accuracy by version.

samples, table (rows, file, what is held out), trust, labels (parsing; to samples and server; the
task's `outcomes`), accuracy (records every answer).
"""
