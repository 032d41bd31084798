"""The built-in checkpoints: qwq-nano and qwq-nano-preview."""
