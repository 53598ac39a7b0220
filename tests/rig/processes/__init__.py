"""Processes of ours that tests start and wait for."""
