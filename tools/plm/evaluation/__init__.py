"""Metrics, calibration, figures, reports."""
