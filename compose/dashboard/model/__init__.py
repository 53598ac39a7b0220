"""What the console shows, as documents made of what was observed. Pure: no web library, no I/O
(but `jobs`, which reads folders)."""
