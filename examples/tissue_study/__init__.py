"""Comparison of the task `tissue` with convolutions: examples/tissue_rivals.py."""
