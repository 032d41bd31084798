"""Everything in an output location: parts, ledger, lease, checkpoints; no Ray."""
