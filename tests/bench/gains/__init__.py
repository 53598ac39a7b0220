"""Whether every device gains: drift, hostile devices, privacy, bad teachers, other ways to learn."""
