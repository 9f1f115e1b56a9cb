"""Files and arrays to pixels, depth to files. Nothing in this room imports jax, so decoder processes start quickly."""
