"""The console's server: what may come in (guard, sessions), what goes out (api), and what a person
may do (actions)."""
