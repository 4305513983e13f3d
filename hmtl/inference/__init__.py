"""Trained models for use outside of training: prediction, saving and loading."""
