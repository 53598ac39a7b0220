"""The queue of batch jobs: docs/architecture/batch.md, The queue.

database   the SQLite file that all processes of a state folder share
entries    what the queue has of a job
job_queue  add, claim, renew, end: each one transaction
outcome    what becomes of a job after an attempt
attempt    one attempt at a job, in a process of its own
runner     takes jobs and starts attempts
"""
