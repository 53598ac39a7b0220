"""A batch job: docs/architecture/batch.md.

submission     what is checked before a job exists, and its specification
job            the numbered steps
scoring        one shard, in whatever process
processes      several processes that score; worker is one of them
loads          shards into a database or objects, and what is tried again
report         a job as a page
manifest       the sums of a job
job_folder     the job's folder on disk
job_index      the jobs of a state folder
"""
