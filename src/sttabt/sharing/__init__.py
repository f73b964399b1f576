"""A pruned model as a folder that goes anywhere: written, read again, on the Hugging Face hub."""
