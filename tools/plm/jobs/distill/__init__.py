"""A student learns from a teacher: setup, teacher and its cache, batches, losses, report."""
