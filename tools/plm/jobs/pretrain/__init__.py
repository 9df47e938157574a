"""What pretraining leaves behind."""
