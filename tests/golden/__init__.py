"""What this version writes, kept as small files that every later version must read."""
