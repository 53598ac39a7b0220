"""A batch job, in the numbered steps of docs/architecture/batch.md.

submission     what is checked before a job exists, and its specification
job            the numbered steps
scoring        one shard, in whatever process
planning       the input hashed and cut
processes      several processes that score; worker is one of them
ray_tasks      the same on a Ray cluster
loads          shards into a database, a topic or objects
manifest       the sums of a job
retrying       shards with errors, again
job_folder     the job's folder on disk
job_index      the jobs of a state folder
"""
