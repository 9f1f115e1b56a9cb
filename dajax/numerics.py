"""The number of the values that dajax computes."""

# Raise it by one in each change after which the same image, weights and options give other depth values than before: a
# change of preprocessing, of the model, of resizing back, or of the values in an encoded file. Differences that batch
# shapes, processors and versions of jax make as well do not count; neither do changes of speed or of metadata. A job
# that was begun with another number is refused, because its outputs would not match.
NUMERICS = 2
