"""The documentation: it builds strictly, and what it names exists in the code."""
