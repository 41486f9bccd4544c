"""Exports of models for other inference engines."""
