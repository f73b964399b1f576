"""The version of the package: artifacts of another one are made again."""

__version__ = "0.2.0"
