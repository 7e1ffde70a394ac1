"""Corpora and tasks as datasets with one schema per task."""
