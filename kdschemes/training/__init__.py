"""Training: from configurations to finished runs."""
