"""The messages on `events` and `scores`: `records` (events, drops, scores), `labels` (true labels
that became known later), `batches` (Arrow batches as bytes), `columns` (those of other producers)
and `traceparent` (the header that names a trace).
"""
