"""The version of the package, which files that dajax writes name too."""

__version__ = "0.1.0"
