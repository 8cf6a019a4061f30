"""Image and mask files: locating, listing, decoding and checking them, in folders and in archives."""
