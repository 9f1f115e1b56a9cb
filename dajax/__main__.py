"""`python -m dajax` is the command line."""

from .cli import main

main()
