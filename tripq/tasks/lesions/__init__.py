"""The task `lesions`, that of the included network: segmentation of multiple sclerosis lesions."""
