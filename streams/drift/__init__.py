"""Drift of inputs and predictions against the reference that an artifact carries.

reference (histograms and their frozen cells), detector (PSI, Hellinger, ..., and thresholds and
alarms for many windows at once). numpy only; knows streams.contract alone.
"""
