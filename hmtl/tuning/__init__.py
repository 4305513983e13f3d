"""Cross-validation of settings."""
