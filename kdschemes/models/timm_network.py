"""Any timm model by name, with its features by stage."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.errors import UserError, first_line, nearest, shown
from kdschemes.models.base import StagedNetwork
from kdschemes.models.hub import announce
from kdschemes.models.inputs import InputSpec, read_input

MOST_STAGES = 4


class TimmNetwork(StagedNetwork):
    """A timm model with features from its `forward_intermediates`.

    At most four stages: the four deepest feature groups of a network that downsamples, or four evenly spaced blocks,
    including the last, of one that does not (vision transformers, mixers). Stages are named after timm's modules with
    `_` for `.` (`layer4`, `blocks_11`). Features are maps [N, D, H, W] before the final norm, also for transformers,
    without class tokens. `takes_size`: whether the model was built for a fixed image size.
    """

    def __init__(self, name: str, network: nn.Module, *, takes_size: bool) -> None:
        super().__init__()
        self.network = network
        self._name, self._takes_size = name, takes_size
        info = getattr(network, "feature_info", None)
        groups = list(getattr(info, "info", info) or [])
        if not hasattr(network, "forward_intermediates") or not groups:
            raise UserError(f"timm/{name} has no features by stage (timm's forward_intermediates); choose another")
        self._groups = groups
        total, count = len(groups), min(MOST_STAGES, len(groups))
        if len({group["reduction"] for group in groups}) == 1:
            self._indices = [total * (k + 1) // count - 1 for k in range(count)]
        else:
            self._indices = list(range(total - count, total))
        names = [groups[index]["module"].replace(".", "_") for index in self._indices]
        distinct = len(set(names)) == count
        self.stage_names = tuple(names if distinct else [f"stage{k}" for k in range(1, count + 1)])
        classifier = self._cfg["classifier"]
        self.classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())

    @property
    def _timm(self) -> Any:
        return self.network

    @property
    def _cfg(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self._timm.pretrained_cfg)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""
        logits: Tensor = self.network(self.adapt_input(images))
        return logits

    def forward_stages(
        self, images: Float[Tensor, "n c h w"]
    ) -> tuple[Float[Tensor, "n classes"], dict[str, Float[Tensor, "n ..."]]]:
        """Return the logits and the features of every stage."""
        last, features = self._timm.forward_intermediates(self.adapt_input(images), indices=self._indices)
        return self._timm.forward_head(last), dict(zip(self.stage_names, features, strict=True))

    def forward_until(self, images: Float[Tensor, "n c h w"], stage: str) -> Float[Tensor, "n ..."]:
        """Return the features of one stage without computing deeper ones (if the model can stop early)."""
        index = self._indices[self.stage_names.index(stage)]
        features: list[Tensor] = self._timm.forward_intermediates(
            self.adapt_input(images), indices=[index], stop_early=True, intermediates_only=True
        )
        return features[0]

    def forward_by_stage(
        self, images: Float[Tensor, "n c h w"], stages: Collection[str]
    ) -> Generator[Tensor, Tensor | None, None]:
        """Yield the features of `stages`, then the logits; only rows sent back continue.

        timm cannot start a network in the middle, so each stage is run from the images on, and outputs that earlier
        stages have already computed are replayed from a record of module calls.
        """
        record: Record = []
        images = self.adapt_input(images)
        for position, stage in enumerate(self.stage_names):
            if stage not in stages:
                continue
            with _recorded(self.network, record, len(images)):
                features = self._timm.forward_intermediates(
                    images, indices=self._indices[: position + 1], stop_early=True, intermediates_only=True
                )
            rows = yield features[-1]
            if rows is not None:
                images = images[rows]
                record[:] = [(module, None if output is None else output[rows]) for module, output in record]
        with _recorded(self.network, record, len(images)):
            last, _ = self._timm.forward_intermediates(images, indices=self._indices)
            logits = self._timm.forward_head(last)
        yield logits

    @torch.no_grad()
    def linear_classifier(self) -> nn.Linear | None:
        """Return timm's classifier if it alone maps the averaged last stage to the logits."""
        layer = self._timm.get_classifier() if hasattr(self._timm, "get_classifier") else None
        width = self._groups[self._indices[-1]]["num_chs"]
        if not isinstance(layer, nn.Linear) or layer.in_features != width:
            return None
        mode = self.network.training
        self.network.eval()
        features = torch.linspace(-1.0, 1.0, 6 * width, device=layer.weight.device).reshape(1, width, 2, 3)
        features = features.to(layer.weight.dtype)
        try:
            same = torch.allclose(self._timm.forward_head(features), layer(features.mean((2, 3))), rtol=1e-4, atol=1e-5)
        except (RuntimeError, ValueError, TypeError, IndexError):
            same = False
        self.network.train(mode)
        return layer if same else None

    def lr_scales(self, decay: float) -> dict[nn.Parameter, float]:
        """Return timm's factors, by its own groups of layers."""
        from timm.optim import param_groups_layer_decay

        groups = param_groups_layer_decay(self.network, layer_decay=decay)
        return {parameter: group["lr_scale"] for group in groups for parameter in group["params"]}

    def plain_state(self) -> dict[str, Tensor]:
        """Return the parameters and buffers under timm's names (not copied)."""
        return self.network.state_dict()

    def load_plain_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a state as returned by `plain_state`; every name and shape must match."""
        self.network.load_state_dict(state, strict=True)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """How images are prepared for the network, and which of its layers timm adapts, in timm's keys."""
        kept = {key: self._cfg[key] for key in ("first_conv", "fixed_input_size") if self._cfg.get(key) is not None}
        return super().pretrained_cfg | kept

    def config(self) -> dict[str, Any]:
        """Return the network's description, including what `timm.create_model("local-dir:...")` needs."""
        spec = self.spec
        model_args: dict[str, Any] = {"num_classes": spec.num_classes, "in_chans": spec.channels}
        if self._takes_size:
            model_args["img_size"] = spec.image_size
        architecture = {"architecture": self._name.partition(".")[0], "model_args": model_args | dict(spec.kwargs)}
        return super().config() | architecture


Record = list[tuple[nn.Module, Tensor | None]]
"""Module calls in order, with their outputs; None for a call that has to be repeated."""


@contextmanager
def _recorded(network: nn.Module, record: Record, rows: int) -> Iterator[None]:
    """Within the context, replay the network's module calls from `record` as far as it reaches.

    Further calls are executed and recorded, with their output if it and the first argument are tensors with `rows`
    rows. Nested calls inside a module are not intercepted.
    """
    modules = list(dict.fromkeys(_called(network)))
    calls, inside = 0, False

    def answering(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*arguments: Any, **options: Any) -> Any:
            nonlocal calls, inside
            if inside:
                return forward(*arguments, **options)
            calls += 1
            if calls <= len(record) and record[calls - 1][0] is not module:
                del record[calls - 1 :]
            if calls <= len(record) and record[calls - 1][1] is not None:
                return record[calls - 1][1]
            inside = True
            try:
                output = forward(*arguments, **options)
            finally:
                inside = False
            if calls > len(record):
                by_row = all(isinstance(x, Tensor) and x.shape[:1] == (rows,) for x in (*arguments[:1], output))
                record.append((module, output if arguments and by_row else None))
            return output

        return answer

    own = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.__dict__["forward"] = answering(module, module.forward)
    try:
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward


def _called(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that a network calls directly: its children, and those of its lists and sequences."""
    for child in network.children():
        yield child
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from _called(child)


def pretrained_input(name: str, channels: int) -> InputSpec:
    """Return the images that timm's pretrained weights were trained on; all unknown if timm doesn't know the model."""
    from timm.models import get_pretrained_cfg, is_model

    try:
        found = get_pretrained_cfg(name) if is_model(name) else None
    except RuntimeError:  # an unknown tag, which create_timm reports
        found = None
    return InputSpec() if found is None else read_input(found.to_dict(), channels)


def create_timm(
    name: str,
    *,
    num_classes: int,
    channels: int,
    image_size: int,
    pretrained: bool,
    kwargs: Mapping[str, Any] | None = None,
) -> TimmNetwork:
    """Build a timm model for these numbers of classes and channels, and this image size if the model takes one.

    With `pretrained`, timm's weights are downloaded and adapted to the number of channels and the image size; a
    classifier for another number of classes is newly initialized. Raises `UserError` for an unknown name, an
    unsupported image size or unavailable weights.
    """
    import timm

    if not timm.is_model(name):
        hint = nearest(name.partition(".")[0], timm.list_models())
        raise UserError(f"unknown timm model '{shown(name)}'{hint} (timm.list_models() lists them all)")
    options = {"num_classes": num_classes, "in_chans": channels, "pretrained": pretrained}
    for key in (kwargs or {}).keys() & {*options, "img_size"}:
        raise UserError(f"kwargs of timm/{name} cannot have {key}: it follows from the data and the other keys")
    options |= kwargs or {}
    try:
        published = timm.get_pretrained_cfg(name) if pretrained else None
        if published and published.hf_hub_id:
            announce(published.hf_hub_id)
        try:
            network, takes_size = timm.create_model(name, img_size=image_size, **options), True
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            network, takes_size = timm.create_model(name, **options), False
    except Exception as error:
        weights = " with timm's weights" if pretrained else ""
        raise UserError(
            f"timm/{name} cannot be built for {channels}x{image_size}x{image_size} images{weights}: {first_line(error)}"
        ) from error
    return TimmNetwork(name, network, takes_size=takes_size)
