"""Export targets whose files the libraries' own writers make: MosaicML Streaming and litdata."""
