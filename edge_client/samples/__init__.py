"""A device's samples to learn from, their labels, and its accuracy by version.

samples, sample_file, reservoir and splits (what is kept and what is held out), labels (parsing),
delayed_labels (the task's `outcomes`), label_queue (to samples and server), accuracy, notebook
(records every answer).
"""
