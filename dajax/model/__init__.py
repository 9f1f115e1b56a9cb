"""Pixels to depth: the network, in Linen and pure functions. No files, no images."""
