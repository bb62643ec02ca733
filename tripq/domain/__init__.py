"""The 6D domain: voxels, gradient directions, and which of their nodes are joined."""
