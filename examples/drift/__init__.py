"""`make drift-demo`: recordings of remounted phones, a fleet that recovers, and bad candidates."""
