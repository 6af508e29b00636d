"""Outputs of frozen teachers on the training views, computed once and reused by every run with the same seed.

A view is a pure function of (seed, epoch, position), and so is a frozen network's output for it. A cache is a folder:
`key.json` says what the outputs depend on, `rebuild.yaml` how to recompute them, and there is one file per epoch and
tensor (the logits, a stage's features) with one float16 row per training position. Every run trains on the stored
values, including the run that stores them.
"""

from kdschemes.teacher_cache.attach import announce, attach_caches, caches_of, check_cache
from kdschemes.teacher_cache.cache import TeacherCache

__all__ = ["TeacherCache", "announce", "attach_caches", "caches_of", "check_cache"]
