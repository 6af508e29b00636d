"""Distillation losses by kind of knowledge: pure functions of tensors, and the modules that schemes are built from.

`response` compares logits, `feature` maps and vectors of single stages, `relation` pairs of samples or of stages.
Every function takes the student first and the teacher second, averages over the batch, computes in at least float32
without autocast, and propagates gradients to both sides: detaching the teacher is up to the caller. In formulas, z are
the student's logits, v the teacher's, y the labels, s and t features, T the temperature (> 0).
"""
