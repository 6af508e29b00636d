"""kdschemes: offline, online and self-distillation on one core of knowledge-distillation losses."""

import os

# Threads that spin while they wait take the cores from those that work; OpenMP reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
