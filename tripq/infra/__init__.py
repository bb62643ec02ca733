"""Files, processes and kept tables: what every floor uses."""
