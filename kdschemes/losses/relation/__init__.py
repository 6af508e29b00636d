"""Losses between relations: of the samples of a batch to each other, of a network's stages to each other."""

from kdschemes.losses.relation.fsp import fsp, fsp_matrix
from kdschemes.losses.relation.rkd import rkd_angle, rkd_distance

__all__ = ["fsp", "fsp_matrix", "rkd_angle", "rkd_distance"]
