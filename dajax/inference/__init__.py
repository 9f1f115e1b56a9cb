"""Images to depth maps: what users call."""
