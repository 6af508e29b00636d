"""What frozen teachers say of the training views, computed once and read again by every run of the same seed.

A view is a pure function of (seed, epoch, position), so a frozen network's answers to the training views are too. A
cache is a folder: `key.json` says what its answers depend on, `rebuild.yaml` how to compute them again, and there is a
file for each epoch and kind of answer (the logits, a stage's features), with a row in float16 for each position that is
trained on. Every run trains on what is stored, the one that stores it too.
"""

from kdschemes.teacher_cache.attach import announce, attach_caches, caches_of, check_cache
from kdschemes.teacher_cache.cache import TeacherCache

__all__ = ["TeacherCache", "announce", "attach_caches", "caches_of", "check_cache"]
