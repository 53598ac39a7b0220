"""What a user looks at next, from the last clicks of a session. See `task`."""
