"""The built-in small models: tasks, training and evaluation."""
