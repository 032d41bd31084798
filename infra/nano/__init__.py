"""The small models: their tasks, training and evaluation."""
