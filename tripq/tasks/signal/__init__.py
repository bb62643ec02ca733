"""The task `signal`: prediction of the signal along directions that were not measured."""
