"""Losses between logits, and between logits and labels."""
