"""Files and folders of the local disk."""
