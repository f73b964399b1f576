"""Files for other runtimes: what is in them, how they are written, checked against torch, and run."""
