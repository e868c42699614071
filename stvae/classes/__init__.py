"""The autoencoder classes of diffusers: what differs from class to class, and which classes are refused."""
