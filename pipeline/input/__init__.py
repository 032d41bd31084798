"""Prompt shards: find the files and read their rows; no Ray."""
