"""Drift of inputs and predictions against the reference that an artifact carries.

reference (histograms and their frozen cells), distances (PSI, Hellinger, ...), detector
(thresholds and alarms for many windows at once), histograms (those that a report carries). numpy
only; knows streams.contract alone.
"""
