"""Jobs over many images that lose nothing: what is read, what is written, and the record of it."""
