"""What people look at: tables, progress, TensorBoard and pictures."""
