"""Videos: frames with their exact times in, steady depth out."""
