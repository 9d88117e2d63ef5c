"""One rank's view of all that is to be saved, sorted by who has to write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diag.engine.checkpoint import optimizers, storage, weights
from diag.engine.checkpoint.parts import Parts, modules_of, optimizers_of, plain_of
from diag.engine.placement.shards import is_sharded


class Snapshot:
    """The state of `parts` as this rank sees it; nothing is copied.

    A model's parameters are the same on every rank or shards of one tensor, and so is what their
    optimizer keeps for them. All else may differ from rank to rank: buffers (BatchNorm's
    statistics), parameters that no model holds, loaders, registered objects. Of those the whole
    job's is rank 0's, and a rank whose own differs keeps it beside.

    Args:
        main: whether this is rank 0.

    Attributes:
        tensors: what goes through torch.distributed.checkpoint, by key.
        outlines: the optimizers' states without tensors, and the models' extra states, by part.
        own: what may differ from rank to rank, by name.
        prints: a digest of each of them.

    Raises:
        DiagError: a part's state cannot be saved; it names the part.
    """

    def __init__(self, parts: Parts, main: bool) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.outlines: dict[str, dict[str, Any]] = {}
        self.own: dict[str, Any] = {}
        self.prints: dict[str, str] = {}
        self._main = main
        named = parts.by_name()
        self._take_weights(named)
        for key, outline in self.outlines.items():
            storage.fingerprint(_called(key, named), outline)
        for key, part in plain_of(named).items():
            self.own[key] = part.state_dict()
            self.prints[key] = storage.fingerprint(_called(key, named), self.own[key])

    def to_write(self, of_main: Mapping[str, str]) -> dict[str, Any]:
        """What this rank's own file holds of `own`: on rank 0 what is written nowhere else, on
        the others what differs from rank 0's.

        Args:
            of_main: rank 0's digests.
        """
        if self._main:
            return {name: state for name, state in self.own.items() if name not in self.tensors}
        return {n: state for n, state in self.own.items() if self.prints[n] != of_main.get(n)}

    def _take_weights(self, named: Mapping[str, Any]) -> None:
        models = modules_of(named)
        for key, model in models.items():
            self._take_model(key, weights.model_state(model), model)
        # Only now: taking a state gives sharded models their sharded parameters back.
        names = weights.name_parameters(models)
        loose = weights.name_loose(optimizers_of(named), names)
        self._take_own(loose)
        for key, optimizer in optimizers_of(named).items():
            self.outlines[key], tensors = optimizers.capture(key, optimizer, names)
            of_loose = {p for p in tensors if optimizers.parameter_of(key, p, loose)}
            self._take_own({path: tensors.pop(path) for path in sorted(of_loose)})
            self.tensors |= tensors

    def _take_model(self, key: str, state: dict[str, Any], model: Any) -> None:
        self._take_own({f"{key}.{n}": state.pop(n) for n in weights.buffer_names(model, state)})
        self.tensors |= {f"{key}.{n}": v for n, v in state.items() if isinstance(v, Tensor)}
        self.outlines[key] = {n: v for n, v in state.items() if not isinstance(v, Tensor)}

    def _take_own(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if is_sharded(tensor):
                self.tensors[name] = tensor
                continue
            self.own[name] = tensor
            self.prints[name] = storage.tensor_fingerprint(tensor)
            if self._main:
                self.tensors[name] = tensor


def _called(key: str, named: Mapping[str, Any]) -> str:
    return f"{key} ({type(named[key]).__name__})"
