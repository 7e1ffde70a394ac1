"""One YAML file per run (package data)."""
