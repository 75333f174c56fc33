"""Setting up the environment: what it says where it cannot, and that it does nothing twice."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools import set_up_venv


def test_a_python_too_old(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    assert set_up_venv.main(Path("/nowhere/.venv")) == 1
    said = capsys.readouterr().err
    assert said.startswith("refax: needs Python 3.11 or newer, got ")
    assert "(Python 3.10.4)" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("missing", ["ensurepip", "venv"])
def test_a_python_without_the_modules(tmp_path: Path, missing: str):
    (tmp_path / f"{missing}.py").write_text("raise ImportError('left out by the distribution')")
    run = subprocess.run(
        [sys.executable, set_up_venv.__file__, str(tmp_path / "environment")],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "cannot make virtual environments: install its venv and ensurepip" in run.stderr
    assert run.stderr.count("\n") == 1
    assert not (tmp_path / "environment").exists()


def test_an_environment_that_is_up_to_date_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    commands: list[list[str]] = []

    def call(command: list[str], **_) -> int:
        commands.append(command)
        if "venv" in command:
            (tmp_path / "environment" / "bin").mkdir(parents=True)
            (tmp_path / "environment" / "bin" / "python").touch()
        return 0

    monkeypatch.setattr(subprocess, "call", call)
    assert set_up_venv.main(tmp_path / "environment") == 0
    make, install_lock, install_refax = commands
    assert make[1:4] == ["-m", "venv", "--clear"]
    assert "--require-hashes" in install_lock
    assert "--editable" in install_refax
    assert capsys.readouterr().out.startswith("Setting up ")

    assert set_up_venv.main(tmp_path / "environment") == 0
    assert len(commands) == 3
    assert capsys.readouterr().out == ""


def test_an_environment_that_was_moved_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "call", lambda command, **_: commands.append(command) or 0)
    monkeypatch.setattr(set_up_venv, "is_usable", lambda venv: True)
    (tmp_path / "environment").mkdir()
    stamp = tmp_path / "environment" / "refax-stamp.txt"

    stamp.write_text(set_up_venv.fingerprint(Path("/elsewhere/environment")))
    assert set_up_venv.main(tmp_path / "environment") == 0
    assert [command[2] for command in commands] == ["venv", "pip", "pip"]

    stamp.write_text("another lock\n" + f"folder {tmp_path / 'environment'}\n")
    assert set_up_venv.main(tmp_path / "environment") == 0
    assert [command[2] for command in commands[3:]] == ["pip", "pip"]


def test_a_failed_step_leaves_no_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(subprocess, "call", lambda command, **_: 1)
    assert set_up_venv.main(tmp_path / "environment") == 1
    assert "failed in: " in capsys.readouterr().err
    assert not (tmp_path / "environment" / "refax-stamp.txt").exists()
