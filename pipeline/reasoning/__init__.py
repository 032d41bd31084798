"""Reasoning: splitting off the thinking, the policy for it, the states of traces; no I/O."""
