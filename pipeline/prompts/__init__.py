"""From the columns of a row to the token ids of its prompt."""
