"""How the parts are put together: the command line, the local launcher and the broker choice."""
