"""Records, tables, windows, splits: what goes into a model and how it is kept apart."""
