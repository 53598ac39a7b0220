"""The live console, `tidewheel console`: docs/architecture/console.md.

model   what each page shows, as documents: pure
web     the server: guard, JSON API
pages   the pages, which draw the model
"""
