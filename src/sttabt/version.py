"""The version of the package, which artifacts and rows note."""

__version__ = "0.2.0"
