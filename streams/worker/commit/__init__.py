"""The numbered commit of a worker: effects first, position after.

committer (the steps), incoming (messages, and dead letters), work (what a flush takes, stores and
publishes), publications and window_reports (messages on `scores` and `windows`), hole_keeper (what
retention deleted unread).
"""
