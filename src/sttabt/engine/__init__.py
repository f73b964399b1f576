"""Runs a backbone under a plan: dense, masked (to train), dropped (to run)."""
