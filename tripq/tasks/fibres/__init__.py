"""The task `fibres`: orientation distributions on the sphere, and their peaks."""
