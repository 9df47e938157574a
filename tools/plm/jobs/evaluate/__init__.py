"""What an evaluation asks of the dataset: baselines on its rows, leakage of its rows."""
