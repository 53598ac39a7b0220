"""The report of a job: one HTML page that loads nothing.

page           the page
plots          the seam to matplotlib: its pictures
"""
