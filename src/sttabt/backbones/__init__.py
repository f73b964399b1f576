"""Thin adapters over library models: each cuts one kind of encoder into the steps between which tokens can go.

A file is an adapter. It says which library classes it serves (`Backbone.serves`), and `adapt` finds it by that.
"""

from sttabt.backbones.registry import adapt

__all__ = ["adapt"]
