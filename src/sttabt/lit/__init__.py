"""LightningModules of the stages, and what the trainer needs beside them."""
