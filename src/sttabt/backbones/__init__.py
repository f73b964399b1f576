"""Thin adapters over timm and Hugging Face modules; the only importers of the two."""
