"""The cards of methods and losses, and citations."""
