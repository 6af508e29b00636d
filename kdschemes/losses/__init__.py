"""Distillation losses: pure functions of tensors by kind of knowledge, and the modules that schemes are built from.

`response` compares logits, `feature` maps and vectors of single stages, `relation` pairs of samples or of stages.
Every function takes the student first and the teacher second, averages over the batch, computes in float32 at least
with autocast off, and lets gradients flow to both sides: detaching the teacher is the caller's decision.
"""
