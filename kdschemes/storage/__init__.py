"""Files on disk: leases, atomic writes, checkpoints, results, and predictions."""
