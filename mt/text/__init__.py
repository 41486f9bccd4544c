"""Text: from raw parallel sources to a prepared corpus of ids."""
