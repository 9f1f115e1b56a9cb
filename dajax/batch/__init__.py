"""Jobs over many pictures that lose nothing: what is read, what is written, and the record of it."""
