"""What commands show, read from the topics and the registry: fleet, windows, rounds, timeline,
releases, dead letters, lag. Pure readers: nothing here changes a fleet, but `dead_letters.replay`.
"""
