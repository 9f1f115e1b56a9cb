"""`python -m dajax` is the command line."""

from dajax.cli import main

main()
