"""Batch jobs at set times: docs/architecture/batch.md, Schedules.

cron       when a schedule fires, and which intervals of event time that makes
template   {start} and {end} in the words of a command
records    a schedule, and the job of an interval
schedules  the schedules of a state folder: added, fired, filled back
"""
