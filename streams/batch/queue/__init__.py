"""Jobs that wait (job_queue) and schedules: docs/architecture/batch.md, The queue."""
