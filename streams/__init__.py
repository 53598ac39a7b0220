"""The stream half of Tidewheel: what all processes agree on, the tasks, and the scoring worker."""
