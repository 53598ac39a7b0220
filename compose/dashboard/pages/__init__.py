"""The console's pages: they draw documents of `compose.dashboard.model`."""
