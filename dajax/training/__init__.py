"""Training: the steps, the loop over them, and the data that they learn from."""
