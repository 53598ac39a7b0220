"""The queue of batch jobs and their schedules: docs/architecture/batch.md, The queue.

job_queue  the jobs that wait and run, in SQLite; a job that runs is one whose folder is locked
runner     takes jobs, starts a process for each attempt, and decides what follows from its end
cron       when a schedule fires
schedules  intervals that are due become jobs, once each; backfill
"""
