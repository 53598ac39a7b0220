"""Whether every device gains: drift, hostile devices, noise, bad teachers, other ways to learn."""
