"""Jobs that wait: docs/architecture/batch.md, The queue.

job_queue      the queue of a state folder
runner         takes jobs from it, and starts a process for each attempt
schedules      when schedules fire, and their intervals
"""
