"""A distributed batch pipeline for the reasoning models QwQ-32B and QwQ-32B-Preview."""
