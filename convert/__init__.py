"""Checkpoints to Flax and back, with a proof: `python -m convert --help`, run from the root of the repository."""
