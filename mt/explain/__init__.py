"""Explanations of translations by attention weights."""
