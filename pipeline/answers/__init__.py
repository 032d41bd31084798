"""Answers that programs read: one file per format, and their registry."""
