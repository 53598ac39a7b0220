"""Event-time windows, and from closed windows to scored rows.

`tumbling` closes a device's windows (`cut` those of sessions and counts), `partition` is the state
of one owned partition of `events`. These are pure: the caller passes the clock.

`scoring_step` is step 1 of a commit: the teacher and its updates, `drift_watch` counts drift per
window, `rows` are the scored rows. Knows the shape of a row, not the store.
"""
