"""Distributed training: collectives, batch norm, FSDP, launch, and SLURM."""
