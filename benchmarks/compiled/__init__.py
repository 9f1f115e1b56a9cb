"""What the compiler for a TPU says of the network: bytes and estimated cycles of every kernel. Nothing runs."""
