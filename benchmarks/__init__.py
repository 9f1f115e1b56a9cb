"""Compares dajax with other implementations: same weights, same pixels, one process, in turns. Not in the wheel."""
