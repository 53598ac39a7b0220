"""The numbered commit of a worker: effects first, position after.

committer (the steps), messages (in and out, and dead letters), work (what a flush takes, stores and
publishes), window_reports, hole_keeper (what retention deleted unread).
"""
