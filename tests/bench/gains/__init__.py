"""Whether every device gains.

fleet, verdict   a fleet in one process, and what the product's gate makes of a candidate
drift            devices that drift: drawn, detected, and what one release wins back
hostile          devices that lie, and noise for privacy
learning         other ways to learn
teachers         a teacher that is wrong
"""
