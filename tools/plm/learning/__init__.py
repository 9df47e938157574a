"""Objectives, training, pretraining, baselines."""
