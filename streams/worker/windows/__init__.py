"""Event-time windows: `tumbling` closes a device's windows, `partition` is the state of one owned
partition of `events`. Pure: the caller passes the clock.
"""
