"""Make a virtual environment from `requirements.lock`, once.

    python3 tools/set_up_venv.py .venv
    python3 tools/set_up_venv.py .venv-docs requirements-docs.lock

The second has what its lock names, and no refax. Needs only the standard library. A stamp inside
the environment says what it was made from (the lock, the parts of `pyproject.toml` that are
installed, the Python version, the folder); while that is the same, this script does nothing and
says nothing.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PYPROJECT = ROOT / "pyproject.toml"


def main(venv: Path, lock: Path = LOCK) -> int:
    complaint = complaint_about_this_python()
    if complaint:
        print(f"refax: {complaint}", file=sys.stderr)
        return 1
    stamp = venv / "refax-stamp.txt"
    wanted = fingerprint(venv, lock)
    python = venv / "bin" / "python"
    made_from = stamp.read_text() if stamp.is_file() else ""
    if made_from == wanted and python.exists():
        return 0

    print(f"Setting up {shown(venv)} from {lock.name} (once; a few minutes) …", flush=True)
    stamp.unlink(missing_ok=True)
    steps = [
        # The lock is complete, so pip has nothing to resolve: --no-deps.
        ["--require-hashes", "--no-deps", "--requirement", str(lock)]
    ]
    if lock == LOCK:
        steps.append(["--no-deps", "--no-build-isolation", "--editable", str(ROOT)])
    commands = [[str(python), "-m", "pip", "install", *PIP_FLAGS, *step] for step in steps]
    # The scripts of an environment name the folder that it was made in.
    moved = made_from != "" and f"folder {venv}\n" not in made_from
    if moved or not is_usable(venv):
        commands.insert(0, [sys.executable, "-m", "venv", "--clear", str(venv)])
    for command in commands:
        code = subprocess.call(command, cwd=ROOT, env=environment_for_pip())
        if code:
            failed = " ".join(command)
            print(f"refax: setting up {shown(venv)} failed in: {failed}", file=sys.stderr)
            return 1
    stamp.write_text(wanted)
    return 0


PIP_FLAGS = ["--quiet", "--quiet", "--disable-pip-version-check", "--no-input"]


def complaint_about_this_python() -> "str | None":
    """What keeps this Python from making the environment, with the cure; None if nothing does."""
    this = f"{sys.executable} (Python {'.'.join(map(str, sys.version_info[:3]))})"
    if sys.version_info < (3, 11):
        return f"needs Python 3.11 or newer, got {this}; say which: make PYTHON=python3.12 …"
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return (
            f"{this} cannot make virtual environments: install its venv and ensurepip modules "
            "(Debian, Ubuntu: the package python3-venv), or say another: make PYTHON=python3.12 …"
        )
    return None


def fingerprint(venv: Path, lock: Path = LOCK) -> str:
    import tomllib

    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    installed = [project["project"], project["build-system"], project["tool"]["hatch"]]
    made_from = [
        "lock " + hashlib.sha256(lock.read_bytes()).hexdigest(),
        "project " + hashlib.sha256(json.dumps(installed).encode()).hexdigest(),
        f"python {sys.version_info[0]}.{sys.version_info[1]}",
        f"folder {venv}",
    ]
    return "\n".join(made_from) + "\n"


def is_usable(venv: Path) -> bool:
    """Whether `venv` is an environment with pip and of this Python version."""
    if not (venv / "pyvenv.cfg").is_file():
        return False
    ask = "import pip, sys; print(sys.prefix, *sys.version_info[:2])"
    try:
        answer = subprocess.run(
            [str(venv / "bin" / "python"), "-c", ask], capture_output=True, text=True
        )
    except OSError:
        return False
    return answer.stdout.strip() == f"{venv} {sys.version_info[0]} {sys.version_info[1]}"


def environment_for_pip() -> "dict[str, str]":
    """The user's pip settings (index, proxy, cache) count; those that move an install do not."""
    moves = {"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PYTHONHOME", "PYTHONPATH"}
    return {name: value for name, value in os.environ.items() if name not in moves}


def shown(venv: Path) -> str:
    return os.path.relpath(venv, ROOT) if ROOT in venv.parents else str(venv)


if __name__ == "__main__":
    sys.exit(main(*(Path(os.path.abspath(argument)) for argument in sys.argv[1:])))
