"""A batch job: docs/architecture/batch.md.

submission     what is checked before a job exists, and its specification
job            the numbered steps
scoring        one shard, in this process or in several
answers        rows answered by a model; what they look like, and drift
manifest       the sums of a job, and its report as a page
job_folder     the job's folder on disk, and the jobs of a state folder
job_queue      jobs that wait, and their runner
schedules      jobs at set times
"""
