"""Pages about lesion maps: of one subject, of a group, of an evaluation."""
