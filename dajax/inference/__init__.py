"""Pictures to depth maps: what users call."""
