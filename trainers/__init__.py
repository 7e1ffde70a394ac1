"""Trainers, collators and the scripts that start a run."""
