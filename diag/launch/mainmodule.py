"""Run a script or module so that it cannot tell the worker from `python train.py`.

`runpy.run_path` would do most of it, but takes its __main__ out of sys.modules at the end, while
classes of it may still have to be pickled, and a spawned child must find the script's there.
"""

from __future__ import annotations

import builtins
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any


def become_script(script: str, args: list[str]) -> tuple[ModuleType, CodeType]:
    """Set sys.argv, sys.path[0] and sys.modules['__main__'] as `python script *args` would.

    Raises:
        OSError, SyntaxError: as Python itself would.
    """
    path = os.path.join(os.getcwd(), script)  # absolute, not normalised: as Python has it
    loader = SourceFileLoader("__main__", path)
    code = loader.source_to_code(loader.get_data(path), path)
    sys.argv[:] = [script, *args]
    _put_first_on_path(os.path.dirname(os.path.realpath(script)))
    module = _new_main(path, loader)
    return module, code


def become_module(name: str, args: list[str]) -> tuple[ModuleType, CodeType]:
    """The same for `python -m name *args`.

    Raises:
        ImportError: there is no such module, or a parent package fails to import.
    """
    _put_first_on_path(os.getcwd())
    sys.argv[:] = ["-m", *args]  # what parent packages see while the module is being found
    spec = _module_spec(name)
    loader: Any = spec.loader
    code = loader.get_code(spec.name) if hasattr(loader, "get_code") else None
    if code is None or spec.origin is None:
        raise ImportError(f"no code object available for {spec.name}", name=spec.name)
    sys.argv[0] = spec.origin
    module = _new_main(spec.origin, loader)
    module.__spec__, module.__package__ = spec, spec.parent
    vars(module)["__cached__"] = spec.cached
    return module, code


def _module_spec(name: str) -> ModuleSpec:
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.__main__")
    if spec is None:
        raise ImportError(f"no module named {name}", name=name)
    return spec


def _put_first_on_path(folder: str) -> None:
    # Started with -P, sys.path has no first entry of the worker's own to replace; a user who
    # wants none either sets PYTHONSAFEPATH.
    if not os.environ.get("PYTHONSAFEPATH"):
        sys.path.insert(0, folder)


def _new_main(path: str, loader: object) -> ModuleType:
    module = ModuleType("__main__")
    names = module.__dict__
    names.update(__file__=path, __cached__=None, __loader__=loader, __builtins__=builtins)
    if sys.version_info < (3, 14):
        names["__annotations__"] = {}
    sys.modules["__main__"] = module
    return module


def run_code(code: CodeType, module: ModuleType) -> None:
    """Execute `code` as `module`; whatever it raises comes out."""
    exec(code, module.__dict__)
