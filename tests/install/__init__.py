"""What users install: the built wheel with its extras, in virtualenvs of its own.

Run by `make test-install`, not by `make test`: it takes some minutes and needs the package index.
"""
