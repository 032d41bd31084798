"""Bring the pipeline to a machine with a GPU and without a network, and measure it there."""
