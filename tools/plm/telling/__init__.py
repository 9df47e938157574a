"""Figures and reports, in one style."""
