"""Losses between relations: among the samples of a batch, and among a network's stages."""
