"""One module per export target, and the registry of them."""
