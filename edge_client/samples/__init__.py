"""What a device remembers of its answers: samples to learn from, labels, accuracy by version.

samples, sample_file, reservoir and splits (what is kept and what is held out), labels (how labels
are written), delayed_labels (the task's `outcomes`), accuracy, notebook (takes every answer in).
"""
