"""The task of the included network: segmentation of multiple sclerosis lesions."""
