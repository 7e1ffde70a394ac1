"""Honest evaluation: pure metrics, intervals, the attack loop, retrieval, comparisons, report."""
