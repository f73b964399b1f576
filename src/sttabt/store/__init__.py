"""Artifacts on disk, and who makes them: the job, its place among several nodes."""
