"""Several sets in one training run: a step's batch comes from one of them, drawn by weight."""
