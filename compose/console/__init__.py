"""The console, `tidewheel console`: docs/architecture/console.md."""
