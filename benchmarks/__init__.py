"""Programs that measure and print; no test knows them, and no page grows old by a change.

    python -m benchmarks.NAME [--quick] [--only PART] [--json]        or `make bench-NAME`

device, worker, late_labels, federation, release, large, batch, scale, soak, gains   one area each
demo, invitations    runs of the whole loop, by options of their own
frame                what they have in common
support, contenders  processes that they start: the product's, and what it is compared with

docs/benchmarks.md has the last figures and their commits; it is edited from what is printed here.
"""
