"""What is special about reasoning models: thinking, its policy, the state a trace ended in; no I/O."""
