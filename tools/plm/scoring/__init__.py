"""Metrics, intervals, calibration, comparison, baselines."""
