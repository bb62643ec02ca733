"""The 6D domain: voxels, gradient directions, and the edges between their nodes."""
