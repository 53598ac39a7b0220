"""Event-time windows: `tumbling` decides when a device's window is closed, `partition` holds the
state of one owned partition of `events`. Pure: the caller passes the clock.
"""
