"""What is asked of torch elastic, without starting anything."""

from __future__ import annotations

import dataclasses
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from diag.errors import DiagError
from diag.launch import elastic, net
from diag.launch.hardware import Hardware
from diag.launch.launcher import worker_command
from diag.launch.logs import RankLogs
from diag.launch.options import RunOptions
from diag.launch.plan import LaunchPlan, make_plan
from diag.launch.signals import Interrupted, interruptible
from diag.launch.target import Target
from diag.launch.tee import Tee

NODES: dict[str, Any] = {"nnodes": 2, "rdzv_endpoint": "127.0.0.1:29500", "rdzv_id": "j"}


def plan(**options: Any) -> LaunchPlan:
    return make_plan(RunOptions("t.py", **options), Hardware(cores=8), {})


def config(tmp_path: Path, **options: Any) -> Any:
    return elastic._config(plan(**options), RankLogs(tmp_path, Tee(), "0"))


def test_a_single_node_uses_the_loopback_and_a_free_port(tmp_path: Path) -> None:
    made = config(tmp_path, gpus=3, max_restarts=2)
    assert (made.min_nodes, made.max_nodes, made.nproc_per_node) == (1, 1, 3)
    assert (made.rdzv_backend, made.rdzv_endpoint) == ("c10d", "127.0.0.1:0")
    assert made.local_addr == "127.0.0.1"
    assert made.max_restarts == 2
    assert made.run_id


def test_several_nodes_meet_at_the_endpoint_in_the_order_of_node_rank(tmp_path: Path) -> None:
    made = config(tmp_path, gpus=4, node_rank=1, **NODES)
    assert (made.min_nodes, made.max_nodes, made.nproc_per_node) == (2, 2, 4)
    assert (made.rdzv_backend, made.rdzv_endpoint) == ("static", "127.0.0.1:29500")
    assert made.rdzv_configs["rank"] == 1
    assert made.run_id == "j"


def test_an_older_torch_is_not_given_what_it_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = {"shutdown_timeout", "signals_to_handle"}
    fields = [
        (field.name, Any, field)
        for field in dataclasses.fields(elastic.LaunchConfig)
        if field.name not in newer
    ]
    monkeypatch.setattr(elastic, "LaunchConfig", dataclasses.make_dataclass("Older", fields))
    assert config(tmp_path, gpus=2).nproc_per_node == 2


def test_logs_of_each_life_and_the_ranks_that_are_shown(tmp_path: Path) -> None:
    tee = Tee()
    envs = {
        local: {"RANK": str(rank), "TORCHELASTIC_RESTART_COUNT": "1"}
        for local, rank in enumerate((4, 5))
    }
    logs = RankLogs(tmp_path, tee, "all")
    assert logs.started_ns is None
    places = logs.reify(envs)
    assert places.stdouts == {i: f"{tmp_path}/0000{r}-1/stdout.log" for i, r in ((0, 4), (1, 5))}
    assert not places.tee_stdouts
    assert envs[1]["TORCHELASTIC_ERROR_FILE"] == f"{tmp_path}/00005-1/error.json"
    assert [file.prefix for file in tee._files] == [b"[rank 4] "] * 2 + [b"[rank 5] "] * 2
    assert logs.started_ns is not None


@pytest.mark.parametrize(("choice", "shown"), [("0", 2), ("none", 0), ("all", 4)])
def test_whose_output_is_shown(tmp_path: Path, choice: Any, shown: int) -> None:
    tee = Tee()
    RankLogs(tmp_path, tee, choice).reify({i: {"RANK": str(i)} for i in (0, 1)})
    assert len(tee._files) == shown


def test_elastic_must_not_expand_the_scripts_arguments() -> None:
    from torch.distributed.elastic.utils import macros

    options = RunOptions("t.py", ("$$", "${local_rank}", "$HOME", "a$"))
    words = worker_command(Target("t.py", False, None, ""), options)
    assert macros.substitute(words, "7")[-5:] == ["t.py", "$$", "${local_rank}", "$HOME", "a$"]


def test_the_store_finds_the_port_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert net.is_port_taken(port)
        there = plan(nnodes=2, node_rank=0, rdzv_endpoint=f"127.0.0.1:{port}")
        with pytest.raises(DiagError) as refused:
            elastic.agree_on_run_name(there, "n", 1)
    assert refused.value.slug == "port-in-use"
    assert not net.is_port_taken(port)


def test_a_node_that_waits_in_vain() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = plan(nnodes=2, node_rank=1, rdzv_endpoint=f"127.0.0.1:{port}")
    with pytest.raises(DiagError) as refused:
        elastic.agree_on_run_name(alone, None, 1)
    assert (refused.value.slug, refused.value.exit_code) == ("rendezvous-failed", 3)
    assert f"the 2 nodes did not meet at 127.0.0.1:{port}" in refused.value.what
    assert "\n" not in refused.value.what


def test_own_address() -> None:
    assert net.address_towards("127.0.0.1") == "127.0.0.1"
    assert net.address_towards("no.such.host.invalid") is None


def test_first_signal_interrupts_and_the_second_is_ignored() -> None:
    raised = []
    with interruptible():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Interrupted as stop:
            raised.append(stop.number)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert raised == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
