"""The messages on `events` and `scores`. Without Arrow, as a device has them: `compact` (events as
bytes), and `messages` (what a device sends). With it:
`records` (all that is on the topics), `labels` (true labels that became known later), `batches`
(Arrow batches as bytes, events as arrays and as rows) and `columns` (those of
other producers).
"""
