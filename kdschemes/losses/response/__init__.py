"""Losses between logits, and of logits and labels."""
