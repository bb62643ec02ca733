"""Tasks: what networks are trained for. Each is one folder, and none imports another."""
