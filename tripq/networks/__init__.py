"""Networks, their application to whole scans, and their files."""
