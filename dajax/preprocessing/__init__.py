"""Images to the network's pixels, at sizes that it takes. Nothing in this room imports jax."""
