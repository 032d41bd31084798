"""Views of a run before, during and after it: plan, doctor, estimate, status, show and report."""
