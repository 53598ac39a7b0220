"""Commands of batch scoring: `tidewheel score` (score) and `tidewheel jobs` (jobs)."""
