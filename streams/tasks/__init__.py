"""The built-in tasks, written like a user's task."""
