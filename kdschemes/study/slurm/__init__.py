"""Studies as SLURM job arrays."""
