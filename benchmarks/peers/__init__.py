"""Environments for the libraries that cannot live in ours, made when they are asked for."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.processes import ROOT, BenchmarkError
from benchmarks.systems import Entry

ENVIRONMENTS = ROOT / ".bench"


def python_of(entry: Entry) -> str:
    """The interpreter for a system; its environment is made or renewed first. Raises BenchmarkError."""
    if not entry.peer:
        return sys.executable
    wanted = Path(__file__).with_name(f"requirements-{entry.name}.txt")
    home = ENVIRONMENTS / entry.name
    python, installed = home / "bin" / "python", home / "installed.txt"
    if not installed.is_file() or installed.read_bytes() != wanted.read_bytes():
        print(f"installing {entry.name} in {home.relative_to(ROOT)} …", file=sys.stderr, flush=True)
        venv.create(home, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(wanted)]
        if subprocess.run(pip, timeout=600).returncode:
            raise BenchmarkError(f"{entry.name} could not be installed from {wanted.relative_to(ROOT)}")
        installed.write_bytes(wanted.read_bytes())
    return str(python)


def versions(entry: Entry) -> dict[str, str]:
    """The versions of a system's packages, and of its Python."""
    code = (
        "import platform, sys\n"
        "from importlib.metadata import PackageNotFoundError, version\n"
        "print('Python', platform.python_version())\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(name, version(name))\n"
        "    except PackageNotFoundError: pass\n"
    )
    command = [python_of(entry), "-c", code, *entry.packages]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    return dict(line.split() for line in lines)
