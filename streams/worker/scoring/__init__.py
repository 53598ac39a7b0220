"""From closed windows to scored rows: the teacher, its updates, and drift per window.

`scoring_step` is step 1 of a commit. Knows `windows` and the shape of a row, not the store.
"""
