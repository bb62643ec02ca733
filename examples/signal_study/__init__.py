"""Comparison of the task `signal` with other methods: examples/signal_rivals.py."""
