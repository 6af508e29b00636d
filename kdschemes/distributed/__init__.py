"""Several processes: collectives, batch norm, FSDP, launch and SLURM."""
