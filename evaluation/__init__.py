"""Metrics, intervals, the robustness protocol, retrieval and reports."""
