"""What serves plm_convert: one form of a checkpoint into another, and the proof that both answer alike."""
