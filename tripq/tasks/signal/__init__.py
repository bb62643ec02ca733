"""The task of the signal itself: directions that were not measured, from those that were."""
