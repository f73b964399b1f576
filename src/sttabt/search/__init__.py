"""A search instead of a grid: a space of settings, a study that proposes trials, and the front that it finds."""
