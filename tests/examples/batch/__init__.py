"""The batch demo."""
