"""The console of a large fleet: start, memory, first paint, and what an open page costs."""
