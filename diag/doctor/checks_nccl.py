"""NCCL and the settings that slow it down, break it, or were left on after a debugging day."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from diag.doctor.checks import (
    NO_GPU,
    Check,
    Outcome,
    Plan,
    fail,
    has_nvidia,
    ok,
    ranks_of,
    skip,
    unknown,
    warn,
)
from diag.doctor.facts import Facts, Interface, Missing, Network, NvidiaTraces, Setting, Settings
from diag.doctor.words import count, listed, version

_SLOW_LOOKUP_SECONDS = 1.0  # torch resolves the host's name several times while it starts
_TRUE = ("1", "y", "yes", "t", "true")  # as torch reads its own switches


@dataclass(frozen=True)
class KnownFault:
    """Releases from `first` to before `fixed` share a fault that others have reported."""

    first: tuple[int, ...]
    fixed: tuple[int, ...]
    fault: str
    source: str


# Only faults with a public report that names the release and the one that mends it.
KNOWN_FAULTS = (
    KnownFault((2, 25, 1), (2, 26, 2), "a failed job can hang while it aborts", "pytorch/pytorch#149153"),
    KnownFault((2, 29, 2), (2, 29, 3), "a regression can hang a job", "pytorch/pytorch#174338"),
)  # fmt: skip
_OLDEST_SHIPPED = (2, 21, 5)  # with torch 2.6, the oldest that diag supports


def nccl_version(facts: Facts, plan: Plan) -> Outcome:
    if not has_nvidia(facts):
        return NO_GPU
    if isinstance(facts.torch, Missing):
        return unknown("NCCL's version", facts.torch)
    nccl = facts.torch.nccl
    if nccl is None:
        return skip("this torch has no NCCL in it, or it does not load")
    for known in KNOWN_FAULTS:
        if known.first <= nccl < known.fixed:
            return warn(
                f"NCCL {version(nccl)}: {known.fault}",
                f"mended in {version(known.fixed)} ({known.source})",
                hint="a torch release with a newer NCCL, or the matching nvidia-nccl-cu* package",
            )
    if nccl < _OLDEST_SHIPPED:
        return warn(
            f"NCCL {version(nccl)} is older than any supported torch ships",
            f"torch 2.6 came with {version(_OLDEST_SHIPPED)}: another libnccl is found first",
            hint="look for a second libnccl.so.2 in LD_LIBRARY_PATH and LD_PRELOAD",
        )
    return ok(f"NCCL {version(nccl)} has no fault known to diag")


def nccl_transport_off(facts: Facts, plan: Plan) -> Outcome:
    settings = _nccl_settings(facts, plan)
    if isinstance(settings, Outcome):
        return settings
    off = [s for s in map(settings.get, _transports(facts)) if s and _is_on(s.value)]
    level = settings.get("NCCL_P2P_LEVEL")
    if level is not None and level.value.upper() in ("LOC", "0"):
        off.append(level)
    if not off:
        return ok("no transport of NCCL is switched off")
    return warn(
        f"{listed(s.name for s in off)} switched off a transport of NCCL",
        *(f"{s.name}={s.value} ({s.where})" for s in off),
        "GPUs then exchange gradients by a slower way",
        hint=f"unless it mends a fault you know: {_unset(off)}",
    )


def _transports(facts: Facts) -> tuple[str, ...]:
    """NCCL_IB_DISABLE costs nothing where there is no InfiniBand or RoCE device."""
    has_ib = isinstance(facts.traces, NvidiaTraces) and facts.traces.infiniband
    local = ("NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE")
    return (*local, "NCCL_IB_DISABLE") if has_ib else local


def _nccl_settings(facts: Facts, plan: Plan) -> Settings | Outcome:
    """The settings, or why a check about NCCL between GPUs has nothing to judge."""
    if not has_nvidia(facts):
        return NO_GPU
    if isinstance(facts.settings, Missing):
        return unknown("the settings", facts.settings)
    if (ranks_of(facts, plan) or 0) == 1:
        return skip("one GPU: nothing for NCCL to exchange")
    return facts.settings


def _is_on(value: str) -> bool:
    """NCCL reads its switches as integers; anything but a non-zero one leaves them off."""
    try:
        return int(value, 0) != 0
    except ValueError:
        return False


def _unset(settings: Iterable[Setting]) -> str:
    """How to take settings back, where each was made."""
    settings = list(settings)
    names = [s.name for s in settings if s.where == "environment"]
    files = [f"remove {s.name} from {s.where}" for s in settings if s.where != "environment"]
    return "; ".join([*(["unset " + " ".join(names)] if names else []), *files])


def nccl_debug(facts: Facts, plan: Plan) -> Outcome:
    if not has_nvidia(facts):
        return NO_GPU
    if isinstance(facts.settings, Missing):
        return unknown("the settings", facts.settings)
    debug, parts = facts.settings.get("NCCL_DEBUG"), facts.settings.get("NCCL_DEBUG_SUBSYS")
    if debug is None or debug.value.upper() not in ("INFO", "TRACE"):
        return ok("NCCL's debug output is off")
    every = parts is not None and bool({"COLL", "ALL"} & set(parts.value.upper().split(",")))
    cost = "one line per rank for every collective" if every else "many lines per rank at start"
    return warn(
        f"NCCL_DEBUG={debug.value} is on",
        f"{cost}; NVIDIA advises against keeping debug settings in production",
        hint=f"{_unset([s for s in (debug, parts) if s])}; NCCL_DEBUG=WARN keeps errors",
    )


def nccl_blocking_wait(facts: Facts, plan: Plan) -> Outcome:
    if not has_nvidia(facts):
        return NO_GPU
    if isinstance(facts.settings, Missing):
        return unknown("the settings", facts.settings)
    names = ("TORCH_NCCL_BLOCKING_WAIT", "NCCL_BLOCKING_WAIT")  # the second until torch 2.1
    on = [s for s in map(facts.settings.get, names) if s and s.value.lower() in _TRUE]
    if not on:
        return ok("collectives do not block the host")
    return warn(
        f"{on[0].name}={on[0].value}: the host waits for each collective",
        "no further work is queued meanwhile, so communication is never hidden by compute",
        "4 or 8 GPUs were seen as slow as one (pytorch/pytorch#50820)",
        hint=_unset(on),
    )


def socket_interface(facts: Facts, plan: Plan) -> Outcome:
    if isinstance(facts.settings, Missing) or isinstance(facts.network, Missing):
        return skip("the settings or the interfaces could not be read")
    names = [i.name for i in facts.network.interfaces]
    nccl = _prescribed(facts.settings, "NCCL_SOCKET_IFNAME") if has_nvidia(facts) else None
    gloo = _prescribed(facts.settings, "GLOO_SOCKET_IFNAME")
    wrong = [s for s in (nccl,) if s and not select_interfaces(s.value, names)]
    wrong += [s for s in (gloo,) if s and set(s.value.split(",")) - set(names)]
    if wrong:
        return fail(
            f"{listed(s.name for s in wrong)} names no interface of this host",
            *(f"{s.name}={s.value} ({s.where})" for s in wrong),
            f"interfaces: {', '.join(names)}",
            hint=f"{_unset(wrong)}, or name one of the interfaces above",
        )
    given = [f"{s.name}={s.value}" for s in (nccl, gloo) if s]
    return ok(f"{listed(given)} fits" if given else "no interface is prescribed")


def _prescribed(settings: Settings, name: str) -> Setting | None:
    """NCCL and torch both take a value of one character or none as not set."""
    setting = settings.get(name)
    return setting if setting is not None and len(setting.value) > 1 else None


def select_interfaces(value: str, names: list[str]) -> list[str]:
    """What NCCL_SOCKET_IFNAME selects: a list of prefixes; ``=`` first: exact names; ``^``
    first: all but those. Source: NCCL user guide, "NCCL_SOCKET_IFNAME"."""
    negate, rest = value.startswith("^"), value.removeprefix("^")
    exact, entries = rest.startswith("="), rest.removeprefix("=").split(",")

    def hit(name: str) -> bool:
        return any(name == e if exact else name.startswith(e) for e in entries if e)

    return [n for n in names if hit(n) is not negate]


def host_name(facts: Facts, plan: Plan) -> Outcome:
    if isinstance(facts.network, Missing):
        return unknown("the network", facts.network)
    network = facts.network
    fault = _leads_nowhere(network)
    if fault is not None and plan.nnodes > 1:
        others = "node" if plan.nnodes == 2 else f"{plan.nnodes - 1} nodes"
        cost = f"ranks on the other {others} could not reach this one"
        evidence = [network.resolve_error] if network.resolve_error is not None else []
        return warn(fault, *evidence, cost, hint=_name_hint(network))
    if network.resolve_seconds > _SLOW_LOOKUP_SECONDS:
        return warn(
            f"resolving the host name took {network.resolve_seconds:.1f} s",
            "every rank does it several times while it starts",
            hint=f"add a line to /etc/hosts: ADDRESS {network.host_name}",
        )
    if fault is not None:  # ranks of one node meet on 127.0.0.1
        return ok(f"{fault}, which is enough for one node")
    return ok(f"{network.host_name} resolves to {listed(network.resolves_to)}")


def _leads_nowhere(network: Network) -> str | None:
    """How the host name fails to lead other nodes here; None where it does lead."""
    if network.resolve_error is not None:
        return f"the host name {network.host_name} does not resolve"
    if all(ipaddress.ip_address(a.partition("%")[0]).is_loopback for a in network.resolves_to):
        return f"the host name {network.host_name} resolves to {listed(network.resolves_to)} only"
    return None


def _name_hint(network: Network) -> str:
    best = outward(network.interfaces)
    if best is None:
        return f"add a line to /etc/hosts: ADDRESS {network.host_name}"
    return (
        f"export GLOO_SOCKET_IFNAME={best.name}, "
        f"or in /etc/hosts: {best.addresses[0]} {network.host_name}"
    )


def outward(interfaces: tuple[Interface, ...]) -> Interface | None:
    """An interface that is up and by which others can probably reach this host."""
    inner = ("lo", "docker", "br-", "veth", "virbr")
    usable = (i for i in interfaces if i.up and i.addresses and not i.name.startswith(inner))
    return next(usable, None)


@dataclass(frozen=True)
class Costly:
    """A debug setting: when its value counts as on, and what that costs."""

    name: str
    is_on: Callable[[str], bool]
    cost: str
    on_cpu: bool  # it also costs something without a GPU


COSTLY = (
    Costly("CUDA_LAUNCH_BLOCKING", _is_on, "every kernel is waited for; nothing overlaps", False),
    Costly("PYTORCH_NO_CUDA_MEMORY_CACHING", _is_on, "the driver allocates every tensor", False),
    Costly(
        "TORCH_DISTRIBUTED_DEBUG",
        lambda value: value.upper() == "DETAIL",
        "ranks compare notes before every collective",
        True,
    ),
)


def debug_settings(facts: Facts, plan: Plan) -> Outcome:
    if isinstance(facts.settings, Missing):
        return unknown("the settings", facts.settings)
    nvidia = has_nvidia(facts)
    on = [
        (setting, costly.cost)
        for costly in COSTLY
        if (setting := facts.settings.get(costly.name)) is not None
        and costly.is_on(setting.value)
        and (nvidia or costly.on_cpu)
    ]
    if not on:
        return ok("no debug setting of torch is on")
    return warn(
        f"{count(len(on), 'debug setting')} of torch slow{'s' if len(on) == 1 else ''} training",
        *(f"{setting.name}={setting.value}: {cost}" for setting, cost in on),
        hint=_unset([setting for setting, _ in on]),
    )


CHECKS = (
    Check("nccl-version", "communication", nccl_version),
    Check("nccl-transport-off", "communication", nccl_transport_off),
    Check("nccl-debug", "communication", nccl_debug),
    Check("nccl-blocking-wait", "communication", nccl_blocking_wait),
    Check("socket-interface", "communication", socket_interface),
    Check("host-name", "communication", host_name),
    Check("debug-settings", "communication", debug_settings),
)
