"""Defects of the core, made on purpose: each must be found by the tests that it names."""
