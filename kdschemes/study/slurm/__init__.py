"""Studies as job arrays of SLURM."""
