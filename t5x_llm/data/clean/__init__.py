"""Cleaning of raw text: documents in, fewer and better documents out, each drop with its reason."""
