"""Reasoning models: thinking and its policy, and the state in which a trace ended; no I/O."""
