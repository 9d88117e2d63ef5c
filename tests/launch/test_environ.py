"""What of the environment and the command line goes into the record: never a secret."""

from __future__ import annotations

import os

import pytest

from diag.launch.environ import (
    WorkerConfig,
    is_switched_off,
    kept_environ,
    patched_environ,
    redact,
)


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["--lr", "0.1", "--tokenizer", "bert"], None),
        (["--max-tokens", "512", "--num_keys=8", "--monkey", "x"], None),
        (["--api-key", "abc", "--lr", "1"], ["--api-key", "***", "--lr", "1"]),
        (["--hf_token=abc"], ["--hf_token=***"]),
        (["--token", "abc", "def"], ["--token", "***", "def"]),
        (["--password", "--lr", "1"], None),  # a flag without a value
        (["wandb.api_key=abc", "lr=1"], ["wandb.api_key=***", "lr=1"]),
        (["--client-secret", "s", "data"], ["--client-secret", "***", "data"]),
        (["-m", "key"], None),
        (["s3://me:pw@host/data"], ["s3://***@host/data"]),
        (["--url=https://tok@host/x"], ["--url=https://***@host/x"]),
        (["user@host:/data"], None),
        ([], None),
    ],
)
def test_redaction(argv: list[str], shown: list[str] | None) -> None:
    assert redact(argv) == (argv if shown is None else shown)


def test_only_listed_variables_are_kept() -> None:
    environ = {
        "NCCL_DEBUG": "INFO",
        "TORCH_LOGS": "+dynamo",
        "CUDA_VISIBLE_DEVICES": "0",
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_JWT_TOKEN": "secret",
        "DIAG_OFF": "0",
        "DIAG_WORKER": "{}",
        "HOME": "/home/me",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "WANDB_API_KEY": "secret",
        "PATH": "/bin",
    }
    assert kept_environ(environ) == {
        "CUDA_VISIBLE_DEVICES": "0",
        "DIAG_OFF": "0",
        "NCCL_DEBUG": "INFO",
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_JWT_TOKEN": "***",
        "TORCH_LOGS": "+dynamo",
    }


@pytest.mark.parametrize(
    ("value", "off"), [(None, False), ("", False), ("0", False), ("false", False), ("1", True)]
)
def test_kill_switch(value: str | None, off: bool) -> None:
    assert is_switched_off({} if value is None else {"DIAG_OFF": value}) is off


def test_worker_config_survives_the_environment() -> None:
    config = WorkerConfig(1, "/runs/a b", "cpu", True, False, True, max_steps=3)
    assert WorkerConfig.from_env(config.to_env()) == config


def test_environment_is_given_back_even_after_an_error() -> None:
    before = dict(os.environ)

    def fail_inside() -> None:
        with patched_environ({"DIAG_TEST_ONLY": "1"}):
            assert os.environ["DIAG_TEST_ONLY"] == "1"
            os.environ["DIAG_TEST_OTHER"] = "2"
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert dict(os.environ) == before
