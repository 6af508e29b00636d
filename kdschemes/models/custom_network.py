"""The user's own network: any `nn.Module` that returns logits, with its features by stage, found without editing it."""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdschemes.config.code import where_raised
from kdschemes.errors import UserError, first_line, nearest, out_of_memory, shown
from kdschemes.models.base import StagedNetwork, scales_by_stage
from kdschemes.models.exits import pool

MOST_STAGES = 4

SIZES: Mapping[str, tuple[str, ...]] = {
    "num_classes": ("num_classes", "n_classes", "classes"),
    "channels": ("channels", "in_chans", "in_channels"),
    "image_size": ("image_size", "img_size", "input_size"),
}
"""What a function that makes a network is called with, if its signature has one of these names."""

REDUCING = (
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool1d, nn.AvgPool2d, nn.MaxPool2d, nn.Flatten),
)
"""Modules that only reduce what the one before them returns: no stage, nor is a module that ends with one."""

PASSING = (nn.Identity, nn.Dropout, nn.Dropout2d)
"""Modules that return what they are given in evaluation: no stage."""

TRIAL = 2
"""Images of the probe: enough to tell the dimension of images from the others."""


@dataclass
class _Recorder:
    """What the hooks of one network share. `wanted` None: nothing is recorded, as in a plain forward pass."""

    wanted: str | None = None
    calls: int = 0
    features: dict[str, Tensor] = field(default_factory=dict)


class _Reached(Exception):
    """The stage that is wanted has been computed."""


@dataclass(frozen=True)
class Layout:
    """How a stage's output becomes a feature: what to keep of it, and whether later layers write over it.

    `kind` is map [N, C, H, W], channels_last [N, H, W, C], tokens [N, L, D], class_token (of which the first of L + 1
    tokens is dropped) or vector [N, D]. A module that is called several times counts with its last call, `calls`.
    """

    kind: str
    calls: int = 1
    overwritten: bool = False

    def feature(self, output: Tensor) -> Tensor:
        """Return the feature."""
        if self.kind == "channels_last":
            output = output.permute(0, 3, 1, 2)
        elif self.kind == "class_token":
            output = output[:, 1:]
        return output.clone() if self.overwritten else output


class _Tap:
    """A hook on the module of one stage. A copy of the network has copies of its taps."""

    def __init__(self, stage: str, layout: Layout, recorder: _Recorder) -> None:
        self.stage, self.layout, self.recorder = stage, layout, recorder

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        recorder = self.recorder
        if recorder.wanted is None:
            return
        recorder.features[self.stage] = self.layout.feature(_tensor(output))
        if recorder.wanted == self.stage:
            recorder.calls += 1
            if recorder.calls == self.layout.calls:
                raise _Reached


class CustomNetwork(StagedNetwork):
    """Any module that returns logits, or an object or mapping with `logits`.

    `stages` are names of its submodules, shallow to deep; None: those that a probe finds, at most four. A stage is
    called as its submodule with `_` for `.`. Its feature is what the submodule returned: a map, also where channels
    come last; tokens, without a class token; or a vector. Hooks on these submodules, which do nothing in the user's own
    forward passes, are removed with this object.

    Raises:
        UserError: it does not return logits for these images and classes, or a stage does not exist.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        num_classes: int,
        channels: int,
        image_size: int,
        stages: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        probe = _Probe(name, network, (channels, image_size, image_size), num_classes)
        chosen = probe.named(stages) if stages is not None else probe.found()
        self._modules_of = dict(zip(_stage_names(chosen), chosen, strict=True))
        self.stage_names = tuple(self._modules_of)
        self.classifiers = (probe.classifier,) if probe.classifier is not None else ()
        self._recorder = _Recorder()
        handles = [
            network.get_submodule(module).register_forward_hook(_Tap(stage, probe.layouts[module], self._recorder))
            for stage, module in self._modules_of.items()
        ]
        weakref.finalize(self, _remove, handles)
        self._linear = self._is_linear(probe)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""
        logits: Tensor = _logits(self.network(self.adapt_input(images)))
        return logits

    def forward_stages(
        self, images: Float[Tensor, "n c h w"]
    ) -> tuple[Float[Tensor, "n classes"], dict[str, Float[Tensor, "n ..."]]]:
        """Return the logits and the features of every stage."""
        recorder = self._recorder
        recorder.wanted = ""
        try:
            logits = _logits(self.network(self.adapt_input(images)))
            features = {stage: recorder.features[stage] for stage in self.stage_names}
        finally:
            recorder.wanted, recorder.features = None, {}
        return logits, features

    def forward_until(self, images: Float[Tensor, "n c h w"], stage: str) -> Float[Tensor, "n ..."]:
        """Return the features of one stage without computing deeper ones."""
        recorder = self._recorder
        recorder.wanted, recorder.calls = stage, 0
        try:
            self.network(self.adapt_input(images))
            return recorder.features[stage]
        except _Reached:
            return recorder.features[stage]
        finally:
            recorder.wanted, recorder.features = None, {}

    def linear_classifier(self) -> nn.Linear | None:
        """Return the last layer if it alone maps the averaged last stage to the logits."""
        return self._classifier if self._linear else None

    def lr_scales(self, decay: float) -> dict[nn.Parameter, float]:
        """Return the factors by stage; those of submodules that are defined in another order than they are called."""
        super().lr_scales(decay)
        return scales_by_stage(self.network, list(self._modules_of.values()), self.classifiers, decay)

    @property
    def _classifier(self) -> nn.Linear | None:
        layer = self.network.get_submodule(self.classifiers[0]) if self.classifiers else None
        return layer if isinstance(layer, nn.Linear) else None

    @torch.no_grad()
    def _is_linear(self, probe: _Probe) -> bool:
        layer = self._classifier
        if layer is None or not self.stage_names or layer.weight.is_meta:
            return False
        images = torch.linspace(-1.0, 1.0, TRIAL * probe.images[0].numel()).view(TRIAL, *probe.images.shape[1:])
        with probe.evaluating():
            logits, features = self.forward_stages(images.to(probe.images))
            feature = pool(features[self.stage_names[-1]])
            return feature.shape[1] == layer.in_features and torch.allclose(
                logits, layer(feature), rtol=1e-4, atol=1e-5
            )

    def plain_state(self) -> dict[str, Tensor]:
        """Return the parameters and buffers under the user's own names (not copied)."""
        return self.network.state_dict()

    def load_plain_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a state as returned by `plain_state`; every name and shape must match."""
        self.network.load_state_dict(state, strict=True)

    def config(self) -> dict[str, Any]:
        """Return the description of the network, with the names of its stages' modules."""
        return super().config() | {"stages": list(self._modules_of.values())}


def _remove(handles: Sequence[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def make_network(
    make: Any, name: str, *, num_classes: int, channels: int, image_size: int, kwargs: Mapping[str, Any] | None
) -> nn.Module:
    """Call a class or function that makes a network, with what its signature accepts of `SIZES`, and with `kwargs`.

    Raises:
        UserError: it is none, does not accept the arguments, or fails.
    """
    if not callable(make) or isinstance(make, nn.Module):
        raise UserError(f"{name} is a {type(make).__name__}: name a class or function that makes a network")
    sizes = {"num_classes": num_classes, "channels": channels, "image_size": image_size}
    options = dict(kwargs or {})
    try:
        parameters = inspect.signature(make).parameters
    except ValueError:
        parameters = inspect.signature(lambda **_: None).parameters
    for size, names in SIZES.items():
        accepted = next((each for each in names if each in parameters), None)
        if accepted is not None:
            options.setdefault(accepted, sizes[size])
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if open_ended and not {*SIZES["num_classes"]} & options.keys():
        options["num_classes"] = num_classes
    for key in options.keys() - parameters.keys() if not open_ended else ():
        raise UserError(f"{name} takes no argument '{shown(key)}'{nearest(key, parameters)}: remove it from kwargs")
    for key, parameter in parameters.items():
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if by_name and parameter.default is parameter.empty and key not in options:
            raise UserError(f"{name} needs an argument '{key}': give it in kwargs, as model.kwargs.{key}=VALUE")
    try:
        made = make(**options)
    except UserError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        why = where_raised(error, getattr(inspect.getmodule(make), "__file__", "") or "")
        raise UserError(
            f"{name} cannot be built with {', '.join(map(str, options)) or 'no arguments'} ({why})"
        ) from error
    if not isinstance(made, nn.Module):
        raise UserError(f"{name} returned a {type(made).__name__}: it must return a torch.nn.Module")
    return made


@dataclass(frozen=True)
class _Seen:
    """The output of a module in the probe: its shape for one image, and what it is."""

    shape: tuple[int, ...]
    kind: str

    @property
    def resolution(self) -> tuple[int, ...]:
        """Height and width of a map, number of tokens; () for vectors."""
        if self.kind == "vector":
            return ()
        if self.kind == "channels_last":
            return self.shape[:2]
        return self.shape[1:] if self.kind == "map" else self.shape[:1]


class _Probe:
    """Runs a network once on zero images and keeps what its submodules return.

    `seen` are the outputs by submodule in the order in which they ended, of those called once or several times;
    `classifier` is the last layer with weights, if it returns the logits. Modes and random generators are restored.
    """

    def __init__(self, name: str, network: nn.Module, shape: tuple[int, int, int], num_classes: int) -> None:
        self.name, self.network = name, network
        some = next(network.parameters(), torch.empty(0))
        self.images = torch.zeros(TRIAL, *shape, device=some.device, dtype=some.dtype)
        self._modules = dict(network.named_modules())
        self.seen: dict[str, _Seen] = {}
        self._calls: dict[str, int] = {}
        self._outputs: list[tuple[str, Tensor]] = []
        handles = [m.register_forward_hook(self._hook(n)) for n, m in self._modules.items() if n]
        try:
            with self.evaluating():
                logits = self._run(network)
        finally:
            for handle in handles:
                handle.remove()
        if not isinstance(logits, Tensor):
            raise UserError(
                f"{name} returned a {type(logits).__name__}: it must return logits, or an object with .logits"
            )
        if logits.shape != (TRIAL, num_classes):
            per_image = "x".join(map(str, logits.shape[1:])) if logits.shape[:1] == (TRIAL,) else str([*logits.shape])
            raise UserError(
                f"{name} returned {per_image} values for an image, and the data has {num_classes} classes: it must "
                "return a logit for each class (an argument named num_classes gets their number)"
            )
        self.classifier = self._last_layer(num_classes)
        over = self._overwritten()
        self.layouts = {
            module: Layout(seen.kind, self._calls[module], module in over) for module, seen in self.seen.items()
        }

    def evaluating(self) -> _Evaluating:
        return _Evaluating(self.network)

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            tensor = _tensor(output)
            self._calls[name] = self._calls.get(name, 0) + 1
            self.seen.pop(name, None)
            if isinstance(tensor, Tensor) and (kind := _kind(tensor)) is not None:
                self.seen[name] = _Seen(tuple(tensor.shape[1:]), kind)
                self._outputs.append((name, tensor))

        return hook

    def _run(self, network: nn.Module) -> Any:
        try:
            return _logits(network(self.images))
        except UserError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            size = "x".join(map(str, self.images.shape[1:]))
            why = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{self.name} does not accept {size} images ({why})") from error

    def _last_layer(self, num_classes: int) -> str | None:
        layers = [
            name
            for name in self.seen
            if isinstance(getattr(self._modules[name], "weight", None), Tensor)
            and not any(self._modules[name].children())
        ]
        last = layers[-1] if layers else None
        return last if last is not None and len(self._modules[last].weight) == num_classes else None

    def _overwritten(self) -> set[str]:
        """Return the submodules whose outputs later layers write over, in training or in evaluation.

        A copy of the network is run, because training changes buffers.
        """
        trial = copy.deepcopy(self.network)
        versions: list[tuple[str, Tensor, int]] = []

        def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def keep(module: nn.Module, arguments: Any, output: Any) -> None:
                if isinstance(tensor := _tensor(output), Tensor):
                    versions.append((name, tensor, tensor._version))

            return keep

        for name, module in trial.named_modules():
            module.register_forward_hook(hook(name))
        with torch.random.fork_rng(devices=_devices(self.images)), torch.no_grad():
            for training in (False, True):
                trial.train(training)
                try:
                    trial(self.images)
                except Exception as error:  # it may refuse a batch of two in training
                    if out_of_memory(error):
                        raise
        return {name for name, tensor, version in versions if tensor._version != version}

    def named(self, stages: Sequence[str]) -> list[str]:
        """Return the submodules that the user names as stages, in the order in which they end."""
        for stage in stages:
            if stage not in self._modules or not stage:
                raise UserError(
                    f"{self.name} has no submodule '{shown(stage)}'{nearest(stage, filter(None, self._modules))} "
                    "(print the network to see their names)"
                )
            if stage not in self.seen:
                why = "returns no map, tokens or vector for each image" if stage in self._calls else "is not called"
                raise UserError(f"submodule {stage} of {self.name} {why}: name another as a stage")
        if len({*stages}) < len(stages):
            raise UserError(f"the stages of {self.name} name a submodule twice: {', '.join(stages)}")
        return [name for name in self.seen if name in stages]

    def found(self) -> list[str]:
        """Return the submodules that are stages: at most four, shallow to deep; none if there is no hidden output.

        Of a network that downsamples: for each size of its maps, the last of the least nested modules with it, the
        four deepest. Of others, such as transformers: blocks of one class in one parent, evenly spaced, with the last;
        without such blocks the least nested modules.
        """
        after = self._classifier_of()
        order, reduced = [], set()
        for name, tensor in self._outputs:
            module = self._modules[name]
            if isinstance(module, REDUCING):
                reduced.add(id(tensor))
            elif id(tensor) not in reduced and not isinstance(module, PASSING) and self._calls[name] == 1:
                order.append(name)
        order = [name for name in order if name not in after]
        maps = [name for name in order if self.seen[name].kind in ("map", "channels_last")]
        tokens = [name for name in order if self.seen[name].kind in ("tokens", "class_token")]
        if len({self.seen[name].resolution for name in maps}) > 1 or (maps and not tokens and len(maps) == 1):
            shallow = self._least_nested(maps)
            return [name for name in order if name in shallow][-MOST_STAGES:]
        candidates = tokens or maps or order
        if not candidates:
            candidates = [name for name in self.seen if name not in after]
        groups: dict[tuple[str, type], list[str]] = {}
        for name in candidates:
            groups.setdefault((name.rpartition(".")[0], type(self._modules[name])), []).append(name)
        blocks = [each for each in groups.values() if len(each) > 1 and any(self._modules[each[0]].children())]
        if blocks:
            chosen = min(blocks, key=lambda each: (each[0].count("."), -len(each)))
        else:
            depth = min((name.count(".") for name in candidates), default=0)
            chosen = [name for name in candidates if name.count(".") == depth]
        count = min(MOST_STAGES, len(chosen))
        return [chosen[len(chosen) * (k + 1) // count - 1] for k in range(count)]

    def _classifier_of(self) -> set[str]:
        """Return the classifier and the modules that end after it or contain it: their outputs are the logits."""
        if self.classifier is None:
            return set()
        order = list(self.seen)
        return {*order[order.index(self.classifier) :]}

    def _least_nested(self, maps: Sequence[str]) -> set[str]:
        chosen: dict[tuple[int, ...], str] = {}
        for name in maps:
            here = self.seen[name].resolution
            if here not in chosen or name.count(".") <= chosen[here].count("."):
                chosen[here] = name
        least = min(name.count(".") for name in chosen.values())
        inside = tuple(f"{name}." for name in chosen.values())
        return {name for name in chosen.values() if name.count(".") < least + 2 or not name.startswith(inside)}


class _Evaluating:
    """A context in which a network is in evaluation mode, without gradients; modes and generators are restored."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def __enter__(self) -> None:
        self._modes = {module: module.training for module in self._network.modules()}
        some = next(self._network.parameters(), None)
        self._contexts = torch.random.fork_rng(devices=_devices(some)), torch.no_grad()
        for context in self._contexts:
            context.__enter__()
        self._network.eval()

    def __exit__(self, *exception: Any) -> None:
        for context in reversed(self._contexts):
            context.__exit__(*exception)
        for module, mode in self._modes.items():
            module.training = mode


def _devices(tensor: Tensor | None) -> list[torch.device]:
    return [tensor.device] if tensor is not None and tensor.is_cuda else []


def _logits(output: Any) -> Any:
    """Return the logits in what a network returned: a tensor, a mapping or an object with `logits`."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    return getattr(output, "logits", output)


def _tensor(output: Any) -> Any:
    """Return the tensor in what a submodule returned; of a tuple or list the first."""
    return output[0] if isinstance(output, tuple | list) and output else output


def _kind(output: Tensor) -> str | None:
    """Return what the output of a module is, by its shape; None if it has no value for each image."""
    if output.shape[:1] != (TRIAL,) or not output.is_floating_point():
        return None
    match list(output.shape[1:]):
        case [_]:
            return "vector"
        case [length, _]:
            class_token = isqrt(length) ** 2 != length and isqrt(length - 1) ** 2 == length - 1
            return "class_token" if class_token else "tokens"
        case [first, second, third]:
            return "channels_last" if first == second != third else "map"
    return None


def _stage_names(modules: Sequence[str]) -> list[str]:
    names = [module.replace(".", "_") for module in modules]
    return names if len({*names}) == len(names) else [f"stage{k}" for k in range(1, len(names) + 1)]
