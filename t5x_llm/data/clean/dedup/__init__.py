"""Repeats: exact, near, and long; external, so that memory is bounded whatever the input's size."""
