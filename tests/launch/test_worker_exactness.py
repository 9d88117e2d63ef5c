"""A worker is exactly `python train.py`: the same script under both, and nothing may differ."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

from helpers.launching import Finished, run_python, run_worker

LOOK = """
    '''what a script can see of itself'''
    import inspect, json, os, sys
    import __main__
    names = {k: repr(v).split(" at 0x")[0] for k, v in sorted(globals().items())
             if k.startswith("__") and k not in ("__loader__", "__spec__")}
    frame = inspect.currentframe()
    print(json.dumps({
        "names": names,
        "loader": type(__loader__).__name__,
        "spec": [__spec__.name, __spec__.parent, __spec__.origin] if __spec__ else None,
        "argv": sys.argv,
        "path": sys.path,
        "cwd": os.getcwd(),
        "filename": frame.f_code.co_filename,
        "line": frame.f_lineno,
        "main": __main__.__dict__ is globals() is sys.modules["__main__"].__dict__,
        "depth": len(inspect.stack()) if "deep" in sys.argv else None,
        "source": inspect.getsource(sys.modules["__main__"])[:20],
        "torch": "torch" in sys.modules,
        "stdin": sys.stdin.read(),
    }, indent=1))
"""


def write(path: Path, source: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(source))
    return path


def both(folder: Path, *words: str, module: bool = False, **env: str) -> tuple[Finished, Finished]:
    """The same under `python` and under a worker."""
    plain = run_python(*(["-m"] if module else []), *words, cwd=folder, **env)
    return plain, run_worker(*words, cwd=folder, module=module, **env)


@pytest.fixture
def looking(tmp_path: Path) -> Path:
    """A folder with the looking script in several places."""
    for name in ("look.py", "sub/look.py", "pkg/look.py", "pkg/__main__.py"):
        write(tmp_path / name, LOOK)
    write(tmp_path / "pkg/__init__.py", "import sys; seen = list(sys.argv)")
    (tmp_path / "link.py").symlink_to("sub/look.py")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ("look.py",),
        ("./sub/../sub/look.py", "--lr", "0.1", "--", "-x", "$HOME", ""),
        ("link.py", "--gpus", "3"),
    ],
)
def test_script_sees_the_same(looking: Path, words: tuple[str, ...]) -> None:
    plain, worker = both(looking, *words)
    assert plain.code == 0, plain.err
    assert worker == plain


def test_absolute_path_from_elsewhere(
    looking: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plain, worker = both(tmp_path_factory.mktemp("elsewhere"), str(looking / "sub" / "look.py"))
    assert plain.code == 0, plain.err
    assert worker == plain


@pytest.mark.parametrize("name", ["look", "pkg.look", "pkg"])
def test_module_sees_the_same(looking: Path, name: str) -> None:
    plain, worker = both(looking, name, "-m", "x", module=True)
    assert plain.code == 0, plain.err
    assert worker == plain


def test_safe_path_is_respected(looking: Path) -> None:
    plain, worker = both(looking, "look.py", PYTHONSAFEPATH="1")
    assert str(looking) not in plain.out.split('"path"')[1].split("]")[0]
    assert worker == plain


def test_a_shadowing_file_in_the_working_directory_does_no_harm(tmp_path: Path) -> None:
    # The worker's own imports must not find the user's files; the script's imports must.
    for name in ("json.py", "dataclasses.py", "diag.py", "ctypes.py"):
        write(tmp_path / name, "raise SystemExit('the wrong ' + __name__)")
    write(tmp_path / "src/train.py", "import helper; print(helper.value)")
    write(tmp_path / "src/helper.py", "value = 'sibling'")
    plain, worker = both(tmp_path, "src/train.py")
    assert plain.out == "sibling\n"
    assert worker == plain


CHILDREN = """
    import multiprocessing as mp, pickle, sys

    class Net:
        def __init__(self, n): self.n = n

    def child(queue, net):
        main = sys.modules["__main__"]
        queue.put((net.n, main.__name__, main.__file__, type(net).__module__, sys.argv, __name__))

    print("top level as", __name__)
    if __name__ == "__main__":
        net = pickle.loads(pickle.dumps(Net(3)))
        assert type(net) is Net and Net.__module__ == "__main__"
        for method in ("spawn", "fork", "forkserver"):
            context = mp.get_context(method)
            queue = context.SimpleQueue()
            process = context.Process(target=child, args=(queue, net))
            process.start()
            print(method, queue.get())
            process.join()
            assert process.exitcode == 0
"""


@pytest.mark.parametrize("module", [False, True])
def test_children_run_the_script(tmp_path: Path, module: bool) -> None:
    write(tmp_path / "train.py", CHILDREN)
    plain, worker = both(tmp_path, "train" if module else "train.py", "--lr", module=module)
    assert plain.code == 0, plain.err
    assert plain.out.count("top level as __mp_main__") >= 1
    assert worker == plain


def test_main_classes_pickle_until_the_very_end(tmp_path: Path) -> None:
    write(
        tmp_path / "train.py",
        """
        import atexit, pickle, threading, time
        class Net: pass
        atexit.register(lambda: print("at exit", type(pickle.loads(pickle.dumps(Net()))) is Net))
        def late():
            time.sleep(0.2)
            print("late", type(pickle.loads(pickle.dumps(Net()))) is Net)
        threading.Thread(target=late).start()
        print("end")
        """,
    )
    plain, worker = both(tmp_path, "train.py")
    assert plain.out.splitlines() == ["end", "late True", "at exit True"]
    assert worker == plain


ENDINGS = {
    "falls through": "pass",
    "exit()": "import sys; sys.exit()",
    "exit(0)": "import sys; sys.exit(0)",
    "exit(3)": "import sys; sys.exit(3)",
    "exit(-1)": "import sys; sys.exit(-1)",
    "exit(True)": "import sys; sys.exit(True)",
    "exit(text)": "import sys; sys.exit('no data in ./data')",
    "exit(tuple)": "import sys; sys.exit((1, 2))",
    "_exit": "import os; os._exit(5)",
    "abort": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "raises": "def f(x):\n    return 1 / x\nf(0)",
    "raises in a sibling": "import sibling\nsibling.fail()",
    "a sibling does not parse": "import broken",
    "chained": "try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('b') from e",
    "in context": "try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('b')",
    "missing module": "import does_not_exist_anywhere",
    "group": "raise ExceptionGroup('several', [ValueError(1), TypeError(2)])",
    "unprintable": "class E(Exception):\n    def __str__(self): raise RuntimeError\nraise E",
    "own hook": "import sys\nsys.excepthook = lambda *a: print('hook', a[0], a[2].tb_lineno)\n1/0",
    "exit in finally": "import sys\ntry:\n    1/0\nfinally:\n    sys.exit(4)",
}


@pytest.mark.parametrize("source", ENDINGS.values(), ids=list(ENDINGS))
def test_ends_the_same(tmp_path: Path, source: str) -> None:
    write(tmp_path / "train.py", source)
    write(tmp_path / "sibling.py", "def fail():\n    raise OSError(2, 'gone')")
    write(tmp_path / "broken.py", "x = (1,\n")
    plain, worker = both(tmp_path, "train.py")
    assert worker == plain  # exit code, output, and the traceback to the letter


def test_deep_recursion_differs_only_by_the_workers_own_depth(tmp_path: Path) -> None:
    write(tmp_path / "train.py", "def f():\n    f()\nf()")
    plain, worker = (
        re.sub(r"repeated \d+ more", "repeated N more", run.err)
        for run in both(tmp_path, "train.py")
    )
    assert "RecursionError" in plain
    assert worker == plain


def test_interrupt_is_130_with_the_scripts_own_traceback(tmp_path: Path) -> None:
    write(tmp_path / "train.py", "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nx = 1")
    plain, worker = both(tmp_path, "train.py")
    assert worker.code == 130
    assert worker.err == plain.err


def test_torch_is_not_there_before_the_script_wants_it(tmp_path: Path) -> None:
    # What a script sets before its own import of torch must still count.
    write(
        tmp_path / "train.py",
        """
        import os, sys
        assert "torch" not in sys.modules
        os.environ["OMP_NUM_THREADS"] = "2"
        import torch
        print(torch.get_num_threads(), torch.__spec__.loader is torch.__loader__)
        print([type(f).__name__ for f in sys.meta_path], vars(torch.__loader__).keys())
        """,
    )
    plain, worker = both(tmp_path, "train.py", OMP_NUM_THREADS="1")
    assert plain.code == 0, plain.err
    assert worker == plain
