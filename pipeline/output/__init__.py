"""The output location: parts, ledger, lease, checkpoints; no Ray."""
