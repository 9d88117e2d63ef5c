"""Checkpoints between real ranks; `python -m helpers.checkpoint_ranks DIRECTORY` prints JSON.

Each phase is a job of its own: new processes, a new process group.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from diag.engine.checkpoint import Parts, get_state_dict, load_state, save_model, save_state
from diag.engine.process import Process, join_job
from diag.errors import DiagError
from helpers.checkpoint_training import Training
from helpers.forked import run_forked
from helpers.strategies import STRATEGIES


def refusal(action: Callable[[], Any]) -> list[str]:
    """[slug, sentence, hint] of the DiagError `action` raises."""
    try:
        action()
    except DiagError as error:
        return [error.slug, error.what, error.hint]
    return ["accepted", "", ""]


def first_run(rank: int, directory: Path) -> Any:
    """Six steps at one go; three steps and a save in the middle of the epoch."""
    process = join_job(cpu=True)
    answer: dict[str, Any] = {}
    for strategy in STRATEGIES:
        straight = Training(process, strategy, seed=1)
        losses = straight.train(6)
        answer[strategy] = {"losses": losses[3:], "end": straight.digest()}
        broken = Training(process, strategy, seed=1)
        broken.train(3)
        before = broken.digest()
        made = save_state(directory / strategy, broken.parts, process, step=3, strategy=strategy)
        answer[strategy] |= {"middle": before, "untouched": broken.digest() == before}
        answer[strategy]["made"] = made == directory / strategy
        answer[strategy]["onward"] = broken.train(3)
        answer[strategy]["never stepped"] = never_stepped(process, strategy, directory)
    return answer


def never_stepped(process: Process, strategy: str, directory: Path) -> bool:
    """Saving before the first step changes nothing of what follows, and loads."""
    saved, plain, resumed = (Training(process, strategy, seed=2) for _ in range(3))
    path = directory / f"{strategy}-fresh"
    save_state(path, saved.parts, process)
    load_state(path, resumed.parts, process)
    ends = []
    for training in (saved, plain, resumed):
        training.seed(2)
        training.train(2)
        ends.append(training.digest())
    return ends[0] == ends[1] == ends[2]


def resumed(rank: int, directory: Path) -> Any:
    """New processes take each checkpoint up, also under the other strategy and back."""
    process = join_job(cpu=True)
    answer: dict[str, Any] = {}
    for strategy in STRATEGIES:
        training = Training(process, strategy, seed=9)
        loaded = load_state(directory / strategy, training.parts, process)
        answer[strategy] = {
            "loaded": [loaded.step, loaded.world_size, loaded.strategy, list(loaded.kept)],
            "middle": training.digest(),
            "losses": training.train(3),
            "end": training.digest(),
        }
    for strategy, other in permutations(STRATEGIES, 2):
        there = Training(process, other, seed=10)
        load_state(directory / strategy, there.parts, process)
        answer[f"{strategy}→{other}"] = there.digest()
        # A forward without backward leaves FSDP's root gathered.
        with torch.no_grad():
            there.model.eval()(torch.ones(2, 5))
        save_state(directory / f"{strategy}-{other}", there.parts, process, strategy=other)
        back = Training(process, strategy, seed=11)
        load_state(directory / f"{strategy}-{other}", back.parts, process)
        answer[f"{strategy}→{other}→{strategy}"] = [back.digest(), back.train(3), back.digest()]
    return answer


def other_world(rank: int, directory: Path) -> Any:
    """More ranks or fewer than saved."""
    process = join_job(cpu=True)
    strategies = STRATEGIES if process.distributed else ("none",)
    answer: dict[str, Any] = {}
    for saved in STRATEGIES:
        for strategy in strategies:
            training = Training(process, strategy, seed=12)
            load_state(directory / saved, training.parts, process)
            ours = training.digest(local=False)
            generators = [training.digest()[name] for name in ("torch", "python", "numpy")]
            again = Training(process, strategy, seed=13)
            load_state(directory / saved, again.parts, process)
            same = generators == [again.digest()[name] for name in ("torch", "python", "numpy")]
            answer[f"{saved}→{strategy}"] = [ours, generators, same, training.train(1)]
    return answer


def troubles(rank: int, directory: Path) -> Any:
    """Nothing hangs, and every rank raises."""
    process = join_job(cpu=True)
    main = process.is_main
    model = torch.nn.Linear(2, 2)
    parts = Parts(models=[model])
    good = directory / "good"
    save_state(good, parts, process)
    answer: dict[str, Any] = {}

    def note(name: str, action: Callable[[], Any]) -> None:
        started = time.monotonic()
        answer[name] = [*refusal(action), time.monotonic() - started]

    def nothing() -> None:
        return None

    def alone(action: Callable[[], Any]) -> Callable[[], Any]:
        return action if main else nothing

    note("load alone", alone(lambda: load_state(good, parts, process, patience_s=0.5)))
    dist.barrier()
    note("save alone", alone(lambda: save_state(good, parts, process, patience_s=0.5)))
    dist.barrier()
    note("after that", lambda: load_state(good, parts, process))
    note("save and load", lambda: (save_state if main else load_state)(good, parts, process))
    note("other names", lambda: save_state(directory / f"at-{rank}", parts, process))
    note("absent", lambda: load_state(directory / "absent", parts, process))
    wider = Parts(models=[torch.nn.Linear(2, 2 if main else 3)])
    note("model of rank 1", lambda: load_state(good, wider, process))

    class Broken:
        def state_dict(self) -> dict[str, Any]:
            return {} if main else {"f": object}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            if not main:
                raise ValueError("not on rank 1")

    note("state of rank 1", lambda: save_state(good, Parts([model], custom=[Broken()]), process))
    answer["left"] = sorted(path.name for path in directory.iterdir() if "answer" not in path.name)
    picky = Broken()
    picky.state_dict = dict  # type: ignore[method-assign]
    whole = Parts([model], custom=[picky])
    save_state(directory / "picky", whole, process)
    note("object of rank 1", lambda: load_state(directory / "picky", whole, process))
    note("still well", lambda: load_state(good, parts, process))
    return answer


def exported(rank: int, directory: Path) -> Any:
    """Sharded weights as whole ones."""
    process = join_job(cpu=True)
    answer: dict[str, Any] = {}
    plain = Training(process, "none").model.state_dict()
    for strategy in STRATEGIES:
        model = Training(process, strategy).model
        state = get_state_dict(model, process)
        everywhere = get_state_dict(model, process, every_rank=True)
        save_model(model, directory / strategy, process, max_shard_size=300)
        answer[strategy] = {
            "keys": list(state),
            "same": all(torch.equal(plain[name], everywhere[name]) for name in plain),
            "all": list(everywhere) == list(plain),
            "plain": all(type(value) is torch.Tensor for value in everywhere.values()),
            "tied": everywhere["last.weight"] is everywhere["tied.weight"],
            "alone": refusal(partial(gather_alone, model, process))[0],
        }
        dist.barrier()
    return answer


def gather_alone(model: torch.nn.Module, process: Process) -> None:
    if process.is_main:
        get_state_dict(model, process, patience_s=0.5)


def main() -> None:
    directory = Path(sys.argv[1])
    states = directory / "states"
    told = {
        "first": run_forked(first_run, 2, states),
        "resumed": run_forked(resumed, 2, states),
        "three": run_forked(other_world, 3, states),
        "one": run_forked(other_world, 1, states),
        "troubles": run_forked(troubles, 2, directory / "troubles"),
        "exported": run_forked(exported, 2, directory / "exported"),
    }
    (directory / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
