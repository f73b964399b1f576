"""What pruned models answer that their library has no class for; imported with the library alone."""
