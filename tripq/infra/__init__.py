"""Files, processes, memory and kept tables, for all floors."""
