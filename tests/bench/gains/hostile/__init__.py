"""Devices that lie or collude, and what noise for privacy costs."""
