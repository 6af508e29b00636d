"""kdschemes: offline, online and self-distillation on one core of knowledge-distillation losses."""

__version__ = "0.1.0"
