"""Built-in tasks, written as users write theirs: against the package `tidewheel` alone."""
