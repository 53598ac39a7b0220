"""Batch jobs, measured: `python -m tests.bench.batch`; the page is docs/benchmarks/batch.md."""
