"""Videos in, latent shards out, and a loader for training. Start reading in ``run.py``."""
