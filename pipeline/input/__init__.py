"""Prompt shards: which files there are and the rows in them; no Ray."""
