"""What a running job does: figures, limits, and which rows kill engines."""
