"""One module per dataset: where its files are, and its classes."""
