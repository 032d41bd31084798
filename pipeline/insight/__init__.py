"""What people ask about a run before, during and after it."""
