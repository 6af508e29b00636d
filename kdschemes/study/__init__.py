"""Studies: many runs that answer one question, as job arrays of SLURM, and how far each of them is."""
