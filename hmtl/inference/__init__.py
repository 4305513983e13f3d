"""Trained models, saved and loaded."""
