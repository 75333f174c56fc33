"""The examples of many devices, on eight that are made up: the losses are those of one."""

import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import mixture_of_experts
import numpy as np
import pipeline_stages
import pytest
import train_sharded
from common import processes

from refax import nnx

# Several models go through the one function that trains, which is not a mistake here.
pytestmark = pytest.mark.filterwarnings("ignore::refax.nnx.RetraceWarning")
SIZES = "--n-layers 1 --d-model 16 --context 16 --batch-size 8 --steps 6".split()


def last_numbers(output: str, row: str) -> list[float]:
    line = next(line for line in reversed(output.splitlines()) if line.startswith(row))
    return [float(n) for n in re.findall(r" (-?\d+\.?\d*(?:e-?\d+)?)", line[len(row) :])]


def apart(output: str) -> float:
    return float(re.findall(r"differ by at most (\S+)\.$", output, re.MULTILINE)[-1])


# -- train_sharded ---------------------------------------------------------------------------------


def test_every_layout_trains_to_the_losses_of_one_device_and_goes_on_in_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    sizes = {}
    for layout in train_sharded.LAYOUTS:
        resumed = bool(sizes)  # from the steps that the layout before left
        given = ["--layout", layout, "--out", str(tmp_path), *SIZES]
        given += ["--stop-at", str(2 + len(sizes)), *(["--resume"] if resumed else [])]
        given += ["--compare"] if layout == "2d" else []
        assert train_sharded.main(given) == 0
        output = capsys.readouterr().out
        assert ("Resumed from step" in output) == resumed
        sizes[layout] = last_numbers(output, f"{layout}, 8 devices")[-1]
    # Losses near 5 in float32; five steps, four layouts, and the sums of each in another order.
    assert apart(output) < 1e-5
    expected, found = (last_numbers(output, row) for row in ("dp, 1 device ", "2d, 8 devices"))
    assert found[:2] == pytest.approx(expected[:2], abs=2e-5)
    assert sizes["dp"] == expected[2]
    assert max(sizes["fsdp"], sizes["tp"]) < sizes["dp"]
    assert sizes["2d"] < sizes["tp"]


def test_a_model_that_cannot_be_divided(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        train_sharded.main(["--layout", "tp", "--n-heads", "2", "--out", str(tmp_path), *SIZES])
    assert stop.value.code == 2
    assert "blocks.0.attention.key.bias of shape (2, 8)" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = ["--out", str(tmp_path), *SIZES]
    assert train_sharded.main(["--layout", "fsdp", "--stop-at", "3", *given]) == 0
    command = [sys.executable, train_sharded.__file__, "--layout", "2d", "--devices", "8", *given]
    command += ["--processes", "2", "--resume", "--compare"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "Resumed from step 3." in run.stdout
    assert "2 process(es)" in run.stdout
    assert "Gloo" not in run.stdout
    assert apart(run.stdout) < 1e-5


def test_when_one_process_fails_all_end(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(processes, "GRACE", 0.2)
    code = """
import sys, time
print("[Gloo] hello"); print("begun", flush=True)
time.sleep(0.3)
if sys.argv[2] == "1":
    sys.exit(3)
time.sleep(600)
"""
    start = time.monotonic()
    assert processes.run_together([sys.executable, "-c", code], 3) == 3
    assert time.monotonic() - start < 60
    assert capfd.readouterr().out == "begun\n"


# -- pipeline_stages -------------------------------------------------------------------------------


def test_a_pipeline_has_the_loss_and_gradients_of_one_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    small = "--blocks 16 --d-model 8 --microbatches 4 --batch-size 4 --steps 3"
    assert pipeline_stages.main([*small.split(), "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "8 stages of 2 block(s); 11 ticks a batch" in output
    assert float(re.findall(r"gradients differ by at most (\S+) of", output)[0]) < 2e-6
    assert apart(output) < 2e-6
    *_, divided = last_numbers(output, "pipeline")
    *_, whole = last_numbers(output, "one device")
    assert whole / divided == pytest.approx(8, rel=0.1)  # a size has three decimals


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--blocks 9", "--blocks 9 is no multiple of the 8 devices"),
        ("--batch-size 9", "--batch-size 9 is no multiple of --microbatches"),
        ("--d-model 9", "--d-model 9 is no multiple of 4"),
    ],
)
def test_a_pipeline_that_does_not_fit(
    given: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        pipeline_stages.main([*given.split(), "--out", str(tmp_path)])
    assert message in capsys.readouterr().err


# -- mixture_of_experts ----------------------------------------------------------------------------


def test_experts_on_eight_devices_learn_what_they_learn_on_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    small = "--blocks 1 --d-model 8 --batch-size 8 --steps 6"
    assert mixture_of_experts.main([*small.split(), "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert apart(output) < 1e-5
    first, last, *_ = last_numbers(output, "8 ")
    assert last < first
    shares = re.findall(r"^(?:first|last) step +(.*)$", output, re.MULTILINE)
    for row in shares:
        assert sum(float(x) for x in row.replace("%", "").split()) == pytest.approx(100, abs=0.5)


@pytest.mark.slow
def test_the_shares_of_the_experts_become_even(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert mixture_of_experts.main(["--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    first, last, dropped_at_first, dropped, _ = last_numbers(output.replace("%", ""), "8 ")
    assert last < first - 1 and dropped_at_first > 25 and dropped < 5
    [shares] = re.findall(r"^last 20 +(.*)$", output, re.MULTILINE)
    assert all(10 < float(share) < 15 for share in shares.replace("%", "").split())
    assert apart(output) < 1e-4  # up to where a rounding sends a token to another expert


def test_a_mixture_is_what_a_loop_over_tokens_gives():
    """Each token by itself, in order, in plain NumPy; one that finds no room gets zeros."""
    layer = mixture_of_experts.MixtureOfExperts(4, 3, room=0.8, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 5, 4))
    found = layer(x).reshape(-1, 4)
    router, up, down = (np.asarray(v.value) for v in (layer.router.kernel, layer.up, layer.down))
    room, taken, dropped = 3, [0, 0, 0], 0  # ceil(0.8 · 10 / 3)
    for token, y in zip(np.asarray(x).reshape(-1, 4), found, strict=True):
        scores = np.exp(token @ router) / np.exp(token @ router).sum()
        expert = int(scores.argmax())
        taken[expert] += 1
        expected = np.zeros(4)
        if taken[expert] <= room:
            hidden = np.asarray(jax.nn.gelu(token @ up[expert]))
            expected = scores[expert] * (hidden @ down[expert])
        else:
            dropped += 1
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-6)
    figures = nnx.state(layer, nnx.Intermediate)
    assert dropped > 0
    assert float(figures["dropped"].value[0]) == pytest.approx(dropped / 10, abs=1e-6)
    np.testing.assert_allclose(figures["load"].value[0], np.array(taken) / 10, rtol=1e-6)
