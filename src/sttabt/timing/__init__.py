"""Times that can be compared: interleaved rounds, medians, ratios."""
