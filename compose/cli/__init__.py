"""The `tidewheel` command: `main`, and one module per command group. They parse arguments and set
the exit code; the imported packages do the work."""
