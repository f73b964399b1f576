"""Thin adapters over library models: each cuts one kind of encoder into the steps between which tokens can go."""
