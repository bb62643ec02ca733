"""Orders, harmonics and coefficients of SO(3) and O(3): no graph, no features."""
