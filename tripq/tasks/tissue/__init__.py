"""The task of tissue: one of several classes in every voxel, from any labelled dataset."""
