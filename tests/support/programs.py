"""Starts the product's commands by their entry points, whether or not the wheel is installed."""

from __future__ import annotations

import os
import subprocess
import sys

from support.repository import ROOT, project

PYTHON_PATH = os.pathsep.join(str(ROOT / folder) for folder in ("proto", "server", "device_agent"))


def programs() -> dict[str, str]:
    """The commands and their entry points, `module:function`."""
    scripts: dict[str, str] = project()["project"]["scripts"]
    return scripts


def run_python(code: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a piece of Python in a fresh interpreter that finds the product, and nothing else of ours."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": PYTHON_PATH, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_program(name: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run one of the product's commands to its end."""
    module, function = programs()[name].split(":")
    code = f"import sys; sys.argv[0] = {name!r}; from {module} import {function}; sys.exit({function}())"
    return run_python(code, *arguments, timeout=timeout)
