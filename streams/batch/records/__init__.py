"""What the rooms of batch scoring share.

documents      the job's folder and the manifest, as JSON documents
rows           rows as arrays: segments, labels, and what is wrong with a row
"""
