"""Filters: radial functions, learned weights, and linear maps of the weights."""
