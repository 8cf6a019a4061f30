"""Locating, listing, decoding and checking image and mask files, in folders and archives."""
