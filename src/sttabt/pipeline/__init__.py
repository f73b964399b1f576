"""From settings to rows: the stages, what they make, and how it is found, measured and described."""
