"""Scenarios on top of the product. Nothing in the product imports them."""
