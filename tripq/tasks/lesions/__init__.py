"""The task of the shipped network: lesions of multiple sclerosis."""
