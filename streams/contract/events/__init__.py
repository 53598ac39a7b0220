"""The messages on `events` and `scores`. Without Arrow, as a device has them: `compact` (events as
bytes), and `messages` (what a device sends). With it:
`records` (all that is on the topics), `event_columns` (events as arrays and as rows), `labels`
(true labels that became known later), `batches` (Arrow batches as bytes) and `columns` (those of
other producers).
"""
