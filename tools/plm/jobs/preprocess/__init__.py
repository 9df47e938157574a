"""From records to a dataset with splits: what was done, told in a report."""
