"""Comparison of the task `fibres` with other methods: examples/fibre_rivals.py."""
