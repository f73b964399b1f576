"""What the method computes: pure functions on tensors and frozen dataclasses. Imports torch and nothing else."""
