"""Reports from the topics and the registry: fleet, windows, rounds, timeline, releases, dead
letters, lag. They only read, except `dead_letters.replay`."""
