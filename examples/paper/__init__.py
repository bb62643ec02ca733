"""The parts of `reproduce_paper`: what is compared, how it is run, and how it is told."""
