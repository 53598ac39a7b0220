"""What a run of `tidewheel up` ends with: figures (the account, and what the fleet has learned) and
tables (as they are shown). Figures are pure.
"""
