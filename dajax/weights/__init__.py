"""Checkpoint files to params and back."""
