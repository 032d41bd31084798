"""From a row of columns to the token ids that an engine gets."""
