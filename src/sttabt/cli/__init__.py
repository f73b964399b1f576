"""From the command line to checked settings. Imports no torch, so that a mistake shows at once."""
