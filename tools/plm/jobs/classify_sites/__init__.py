"""Whole proteins scanned for sites: candidates, the scan, its tables, figure and report."""
