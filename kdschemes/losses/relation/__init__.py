"""Losses between relations: of the samples of a batch to each other, of a network's stages to each other."""

from kdschemes.losses.relation.cc import kernel_congruence, neighbour_congruence
from kdschemes.losses.relation.crd import (
    draw_others,
    log_normaliser,
    memory_similarities,
    noise_contrastive,
    refreshed_memory,
)
from kdschemes.losses.relation.fsp import fsp, fsp_matrix
from kdschemes.losses.relation.irg import irg_edges, irg_transformation
from kdschemes.losses.relation.logit_correlation import batch_correlation, class_correlation
from kdschemes.losses.relation.pkt import probabilistic_transfer
from kdschemes.losses.relation.rkd import rkd_angle, rkd_distance
from kdschemes.losses.relation.rows import unit_rows
from kdschemes.losses.relation.sp import similarity_preserving

__all__ = [
    "batch_correlation",
    "class_correlation",
    "draw_others",
    "fsp",
    "fsp_matrix",
    "irg_edges",
    "irg_transformation",
    "kernel_congruence",
    "log_normaliser",
    "memory_similarities",
    "neighbour_congruence",
    "noise_contrastive",
    "probabilistic_transfer",
    "refreshed_memory",
    "rkd_angle",
    "rkd_distance",
    "similarity_preserving",
    "unit_rows",
]
