"""Engine's members that save, load and log."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from diag.engine import checkpoint
from diag.engine.checkpoint import Naming, Parts, Stateful
from diag.engine.process import Process
from diag.engine.surface_refused import refuses
from diag.engine.tracking import Elsewhere, Tracker, Trackers, choose_trackers

Directory = str | os.PathLike[str]


class StateSurface:
    """See `diag.engine.checkpoint` and `diag.engine.tracking`."""

    process: Process
    _naming: Naming
    _registered: list[Stateful]
    _trackers: Trackers | None
    _log_with: Any
    _logging_dir: Directory | None

    @property
    def project_dir(self) -> Directory | None:
        """Where automatic checkpoints and logs go."""
        return self._naming.project_dir

    @property
    def logging_dir(self) -> Directory | None:
        """Where trackers write; `project_dir` if it was not said."""
        return self._logging_dir if self._logging_dir is not None else self.project_dir

    @property
    def strategy(self) -> str:
        raise NotImplementedError

    @property
    def completed_steps(self) -> int:
        raise NotImplementedError

    def _parts(self) -> Parts:
        raise NotImplementedError

    def _resume_at(self, step: int) -> None:
        raise NotImplementedError

    @refuses("safe_serialization", "A state is always safe to load: no code is in it.", (True,))
    def save_state(self, output_dir: Directory | None = None) -> Path:
        """Save the whole training, at once or not at all. Collective; between two optimizer steps.

        Models, optimizers, schedulers, loss scale, loaders' positions, every rank's random
        generators and what was registered.

        Args:
            output_dir: None with `automatic_checkpoint_naming`: the next name in `project_dir`.

        Returns:
            The checkpoint's directory.
        """
        return checkpoint.save_state(
            output_dir,
            self._parts(),
            self.process,
            naming=self._naming,
            step=self.completed_steps,
            strategy=self.strategy,
        )

    @refuses("load_kwargs", "There is nothing to choose: weights go where the model lies.")
    def load_state(self, input_dir: Directory | None = None) -> Path:
        """Put everything back as it was saved, on any number of ranks and by any strategy. Collective.

        Args:
            input_dir: None with `automatic_checkpoint_naming`: the newest complete one.

        Returns:
            The checkpoint's directory.
        """
        loaded = checkpoint.load_state(input_dir, self._parts(), self.process, naming=self._naming)
        self._resume_at(loaded.step)
        return loaded.directory

    def register_for_checkpointing(self, *objects: Stateful) -> None:
        """Have `save_state` and `load_state` include objects with state_dict and load_state_dict."""
        checkpoint.check_stateful(objects)
        self._registered += [one for one in objects if all(one is not r for r in self._registered)]

    @refuses(
        "keep_fp32_wrapper",
        "A prepared model is your own model, which can be copied and pickled as it is; "
        "engine.get_state_dict(model) gives its weights alone.",
        (True,),
    )
    def unwrap_model(self, model: nn.Module, *, keep_torch_compile: bool = True) -> nn.Module:
        """The user's own module inside DistributedDataParallel and, on request, torch.compile."""
        return checkpoint.unwrap_model(model, keep_torch_compile)

    @refuses("unwrap", "The names are always those of the unwrapped model.", (True,))
    def get_state_dict(self, model: nn.Module, every_rank: bool = False) -> dict[str, Any]:
        """The model's whole state on the CPU. Collective if the model is sharded.

        Args:
            every_rank: all ranks get it; else rank 0 does, and the others get an empty dict.
        """
        return checkpoint.get_state_dict(model, self.process, every_rank)

    def save_model(
        self,
        model: nn.Module,
        save_directory: Directory,
        max_shard_size: int | str = "10GB",
        safe_serialization: bool = True,
    ) -> None:
        """Write the model's weights as Hugging Face lays them out; every rank calls it.

        Args:
            max_shard_size: bytes, or "5GB", of one file.
            safe_serialization: safetensors; False: torch.save.
        """
        checkpoint.save_model(
            model, save_directory, self.process, max_shard_size, safe_serialization
        )

    @refuses("init_kwargs", "Make your tracker with its arguments: Engine(log_with=Mine(…)).")
    def init_trackers(self, project_name: str, config: Mapping[str, Any] | None = None) -> None:
        """Start what `log_with` names; by default `logging_dir/project_name.jsonl`."""
        directory = Path(self.logging_dir if self.logging_dir is not None else ".")
        chosen = choose_trackers(self._log_with, directory, project_name)
        self._trackers = Trackers(self.process, chosen)
        self._trackers.start(config)

    @refuses("unwrap", "The tracker is your own object; what it wraps is its attribute.", (False,))
    def get_tracker(self, name: str) -> Tracker:
        """The tracker `name`; on ranks that do not run it, and before `init_trackers`, one that
        does nothing."""
        return self._trackers.get(name) if self._trackers is not None else Elsewhere(name)

    def log(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        log_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Give values to every tracker; without `init_trackers` nothing happens."""
        if self._trackers is not None:
            self._trackers.log(values, step, log_kwargs)

    def end_training(self) -> None:
        """Close the trackers; the process group is left to its owner."""
        if self._trackers is not None:
            self._trackers.finish()
