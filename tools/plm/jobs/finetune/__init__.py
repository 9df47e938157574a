"""Fine-tuning: rows, batches, training, choice of the method, bundle, report."""
