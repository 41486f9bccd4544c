"""Scores of translations, and the reports made of them."""
