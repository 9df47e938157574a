"""What trainings share: objectives, rows, exact checkpoints."""
