"""Masked language modelling: corpus, clusters kept apart, masks, training."""
