"""Ratios that catch a regression in three minutes: `python -m tests.bench.quick`."""
