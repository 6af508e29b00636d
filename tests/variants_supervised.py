"""What the options of the supervised methods open, to be tested like their defaults."""

from __future__ import annotations

from variants import base

VARIANTS = {
    "supervised-ce-ema": [*base("supervised", "ce"), "train.ema=0.9"],
}
