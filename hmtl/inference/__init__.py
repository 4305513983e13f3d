"""Trained models for use outside of training: prediction, saving, loading and export."""
