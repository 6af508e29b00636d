"""Losses between relations: of the samples of a batch to each other, of a network's stages to each other."""
