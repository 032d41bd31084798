"""Documentation that is generated from the code, and figures about the code."""
