"""The shipped topologies, to be tested like methods."""

from __future__ import annotations

from tests import REPOSITORY

TOPOLOGIES = REPOSITORY / "experiments" / "topologies"


def topology(name: str, model: str = "resnet20") -> list[str]:
    """Return the overrides of a shipped topology on small networks."""
    teacher = ["teacher.name=resnet20"] if name.startswith("offline") else []
    return [f"experiment=topologies/{name}", f"model={model}", *teacher]


NAMES = sorted(path.stem for path in TOPOLOGIES.glob("*.py"))
VARIANTS: dict[str, list[str]] = {f"topology-{name}": topology(name) for name in NAMES}
REFUSED: dict[tuple[str, str], str] = {}
