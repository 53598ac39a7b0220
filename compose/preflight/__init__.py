"""Before the first run: `tidewheel new` and `tidewheel check`.

check surveys a task's data and tries its models, template is the task file for a start.
`launcher` begins with the fast part of it.
"""
