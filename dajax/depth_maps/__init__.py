"""Depth maps to files and colours, and back. Nothing in this room imports jax."""
