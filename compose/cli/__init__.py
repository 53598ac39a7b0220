"""The `tidewheel` command: `main` and one module a command group. Arguments in, exit code out; the
work is done in the packages that the commands import.
"""
