"""Filters: radial functions, learned weights, and what is linear in them."""
