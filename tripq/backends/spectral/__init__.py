"""The layer on boxes of a grid in Fourier space: tiles, stages, and their convolution."""
