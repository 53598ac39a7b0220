"""Before the first run."""
