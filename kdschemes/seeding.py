"""Every random choice is a pure function of the run's seed and the purpose of the choice."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor


def derive(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for a purpose, identical on every machine and in every process."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextlib.contextmanager
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Run a block with torch's CPU generator seeded for a purpose; its state is restored afterward."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, *purpose))
        yield


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators (dropout) for one optimizer step on one process."""
    torch.manual_seed(derive(seed, "step", step, rank))


def make_deterministic() -> None:
    """Make torch use deterministic algorithms; it warns where none exists.

    Uninitialized memory is not filled: filling made a training step of ResNet-20 7 times slower on CPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


WORD = (1 << 64) - 1

GOLDEN = 0x9E3779B97F4A7C15

MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mix64(*words: int) -> int:
    """Return an order-dependent 64-bit hash of integers: one SplitMix64 step per word."""
    state = 0
    for word in words:
        state = (state + word + GOLDEN) & WORD
        state = ((state ^ (state >> 30)) * MULTIPLIERS[0]) & WORD
        state = ((state ^ (state >> 27)) * MULTIPLIERS[1]) & WORD
        state ^= state >> 31
    return state


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _shift(x: Int[Tensor, " n"], bits: int) -> Int[Tensor, " n"]:
    """Shift right as if `x` were unsigned: torch's own shift of int64 copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def random_bits(key: int, index: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return output number `index` of the SplitMix64 generator that starts at `key`, as int64 (all 64 bits)."""
    x = index.long() * _signed(GOLDEN) + _signed(key)
    x = (x ^ _shift(x, 30)) * _signed(MULTIPLIERS[0])
    x = (x ^ _shift(x, 27)) * _signed(MULTIPLIERS[1])
    return x ^ _shift(x, 31)


def uniform(seed: int, epoch: int, index: Int[Tensor, " n"], stream: int) -> Float[Tensor, " n"]:
    """Return one number in [0, 1) per sample, float64 with 53 random bits, on the device of `index`.

    The result is bitwise identical on every device and independent of the other samples in the batch.
    """
    return _shift(random_bits(mix64(seed, epoch, stream), index), 11).double() * 2.0**-53


def integers(seed: int, epoch: int, index: Int[Tensor, " n"], stream: int, count: int) -> Int[Tensor, " n"]:
    """Return one uniform integer in 0 .. count - 1 per sample."""
    return (uniform(seed, epoch, index, stream) * count).long()
