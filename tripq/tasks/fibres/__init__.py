"""The task of fibre orientations: distributions on the sphere, and their peaks."""
