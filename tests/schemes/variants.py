"""Overrides of small schemes to test: every method of the table by its defaults, and what their options open."""

from __future__ import annotations

from kdschemes.config.losses import KINDS
from kdschemes.config.schemes import SCHEMES

TEACHERS = {"camkd": "[resnet20,convnet]"}
"""Methods that need other teachers than one resnet20."""


def base(scheme: str, method: str, model: str = "resnet20") -> list[str]:
    """Return the overrides of a method by its defaults, on small networks."""
    teacher = [f"teacher={TEACHERS.get(method, 'resnet20')}"] if SCHEMES[scheme][method].uses_teacher else []
    return [f"scheme={scheme}", f"method={method}", f"model={model}", *teacher]


LOSSES = [(kind, name) for kind, table in KINDS.items() for name in table if name != "none"]
"""Every loss with its kind."""

METHODS = {f"{scheme}-{method}": (scheme, method) for scheme, methods in SCHEMES.items() for method in methods}
DEFAULTS = {name: base(*method) for name, method in METHODS.items()}
OFFLINE, ONLINE, SELF = base("offline", "kd"), base("online", "dml"), base("self", "byot")
