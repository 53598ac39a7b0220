"""What is tried again. `jobs retry` scores shards with errors again, in place of what they gave.

A shard's `generation` grows, so a database that has the rows of the one before does not count as
done: its rows are replaced in the transaction that adds the new ones.
"""

from streams.batch.jobs.job_folder import JobFolder
from streams.batch.records.progress import ShardRecord
from streams.contract.errors import Retryable

LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def mark_failed(job: JobFolder) -> int:
    """Mark the shards that have rows with errors as not done; return how many. The caller holds the
    folder."""
    job.specification()
    plan, marked = job.plan(), 0
    for number in range(len(plan.shards) if plan is not None else 0):
        record = job.record(number)
        if record is None or record.state == "InProgress" or not record.counts.failed:
            continue
        again = ShardRecord(
            state="InProgress", attempts=record.attempts, generation=record.generation + 1
        )
        job.write_record(number, again)
        marked += 1
    if marked:
        job.write_state("InProgress", f"{marked} shards with errors are scored again")
    return marked


def may_pass(error: BaseException) -> bool:
    """Return whether what failed may succeed later: a service or a disk, not the input."""
    if isinstance(error, OSError):
        return not isinstance(error, LASTING)
    cause = error.__cause__  # what a library raised, translated
    return isinstance(error, Retryable) or (isinstance(cause, OSError) and may_pass(cause))
