"""What a saved model says of files: inputs found, predicted in batches, written as lines; pictures of what was kept."""
