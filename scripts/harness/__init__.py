"""What stands behind scripts/galaxy, run, serve and test; needs the standard library only."""
