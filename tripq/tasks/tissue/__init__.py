"""The task `tissue`: one of several classes in every voxel, from any labelled dataset."""
