"""A batch job, in the numbered steps of docs/architecture/batch.md.

submission     what is checked before a job exists, and its specification
answers        rows and outputs of the model as a table
job_folder     the job's folder on disk
job            the numbered steps
"""
