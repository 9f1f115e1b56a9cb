"""Images with depth to train on: synthetic scenes, whose depth is exact."""
