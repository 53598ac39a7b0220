"""What the rooms of batch scoring share.

specification  what a job was asked for and how its input is cut, as JSON documents
progress       how far it is, and what became of its rows: the same
rows           rows as arrays: segments, labels, and what is wrong with a row
"""
