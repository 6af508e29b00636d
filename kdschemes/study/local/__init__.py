"""Studies on this machine: packs, scheduler and workers."""
