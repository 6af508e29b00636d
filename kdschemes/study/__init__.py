"""Studies: many runs that answer one question, run locally or as SLURM job arrays, and their progress."""
