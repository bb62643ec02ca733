"""Report pages of lesion maps: for one subject, a group, and an evaluation."""
