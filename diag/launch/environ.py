"""The environment a rank gets: what diag tells it, and what of it is kept in the record."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

WORKER_VARIABLE = "DIAG_WORKER"
RUN_DIR_VARIABLE = "DIAG_RUN_DIR"


@dataclass(frozen=True)
class WorkerConfig:
    """What the launcher tells each rank beside torchrun's own variables; JSON in one variable.

    Attributes:
        launcher_pid: the rank ends when this process does.
        run_dir: absolute path of the run's directory.
        guard: stop a script that distributes nothing before its first optimizer step.
    """

    launcher_pid: int
    run_dir: str
    device: str
    module: bool
    probes: bool
    guard: bool
    max_steps: int | None = None
    samples_per_step: int | None = None

    def to_env(self) -> dict[str, str]:
        return {WORKER_VARIABLE: json.dumps(asdict(self)), RUN_DIR_VARIABLE: self.run_dir}

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> WorkerConfig:
        """Read it back. Raises KeyError, ValueError or TypeError when it is not the launcher's."""
        return cls(**json.loads(environ[WORKER_VARIABLE]))


def is_switched_off(environ: Mapping[str, str]) -> bool:
    """DIAG_OFF=1: install nothing in any rank."""
    return environ.get("DIAG_OFF", "").strip().lower() not in ("", "0", "false", "no")


@contextmanager
def patched_environ(extra: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes started inside; afterwards the environment is as before."""
    before = dict(os.environ)
    os.environ.update(extra)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


_KEPT_PREFIXES = (
    "NCCL_", "TORCH_", "TORCHELASTIC_", "CUDA_", "OMP_", "MKL_", "GLOO_", "SLURM_", "DIAG_",
    "PYTORCH_", "ACCELERATE_", "KMP_",
)  # fmt: skip
_KEPT_NAMES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LD_PRELOAD")


def kept_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that go into run.json: an allow-list, and even there no secrets."""
    return {
        name: "***" if is_secret_word(name) else value
        for name, value in sorted(environ.items())
        if (name.startswith(_KEPT_PREFIXES) or name in _KEPT_NAMES) and name != WORKER_VARIABLE
    }


_SECRET_WORDS = ("secret", "password", "passwd", "passphrase", "credential", "apikey", "authtoken")
# Too short to be looked for inside a word: `monkey`, `tokenizer` and `max_tokens` are no secrets.
_SECRET_PARTS = frozenset({"key", "token", "auth", "pwd", "pass"})
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def is_secret_word(name: str) -> bool:
    """Does a flag's or variable's name say that its value is a secret?"""
    lowered = name.lower().lstrip("-")
    parts = set(lowered.replace("-", "_").replace(".", "_").split("_"))
    return bool(parts & _SECRET_PARTS) or any(word in lowered for word in _SECRET_WORDS)


def redact(argv: list[str]) -> list[str]:
    """`argv` with secrets replaced by ***: `--key V`, `key=V`, and logins in URLs."""
    shown: list[str] = []
    hide_next = False
    for word in argv:
        name, equals, _ = word.partition("=")
        if hide_next and not word.startswith("--"):
            shown.append("***")
            hide_next = False
        elif equals and is_secret_word(name):
            shown.append(f"{name}=***")
            hide_next = False
        else:
            shown.append(_URL_LOGIN.sub("***", word))
            hide_next = word.startswith("-") and not equals and is_secret_word(word)
    return shown
