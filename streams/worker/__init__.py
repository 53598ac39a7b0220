"""The Faust worker: closes event-time windows, scores them, and writes the store."""
