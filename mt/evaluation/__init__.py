"""Scores of translations, and reports about them."""
