"""The messages on `events` and `scores`. Without Arrow, as a device has them: `compact` (events as
bytes), and `messages` (what a device sends). With it:
`records` (all that is on both topics), `json_form` (events as JSON), `labels` (true labels that
became known later) and `batches` (Arrow batches as bytes, events as arrays and as rows).
"""
