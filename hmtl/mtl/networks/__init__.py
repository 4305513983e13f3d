"""Networks as functions of flat parameters, one at a time or many side by side."""
