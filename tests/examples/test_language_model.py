"""The demo `examples/train_language_model.py`, at sizes that train in a moment."""

import collections
import dataclasses
import gc
import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import train_language_model as demo
from language_model import data, generation, options, runs, training
from language_model.errors import DemoError, UsageError
from language_model.model import LanguageModel, ModelConfig

from refax import nnx

# Many models go through the one function that samples, which is not a mistake here.
pytestmark = pytest.mark.filterwarnings("ignore::refax.nnx.RetraceWarning")
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_language_model.py"
STEPS = 12
TINY = (
    "--n-layers 1 --n-heads 2 --d-model 16 --context 16 --batch-size 4 --eval-batches 2 "
    f"--steps {STEPS} --log-every 2 --eval-every 4 --checkpoint-every 4 --sample-bytes 20"
).split()


def random_text(size: int, seed: int = 0) -> bytes:
    """Words of a small vocabulary in random order."""
    words = [b"carry", b"scan", b"graph", b"leaf", b"\n", b"path"]
    chosen = np.random.default_rng(seed).integers(len(words), size=size // 4 + 1)
    return b" ".join(words[i] for i in chosen)[:size]


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_bytes(random_text(4_000))
    return file


@pytest.fixture(scope="module")
def arguments(corpus_file: Path) -> list[str]:
    return [*TINY, "--corpus", str(corpus_file)]


@pytest.fixture(scope="module")
def whole_run(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not stopped."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert demo.main([*arguments, "--out", str(run)]) == 0
    return run


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, to see that nothing was written."""
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What stands on stderr: one line, no traceback."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("train_language_model.py: error: ")
    return lines[0]


# -- text ----------------------------------------------------------------------------------------


def test_tokens_are_bytes():
    text = "naïve: 機\n"
    tokens = data.encode(text)
    assert tokens.tolist() == list(text.encode())
    assert data.decode(tokens) == text
    assert data.decode(tokens[:3]) == "na�"


def test_standard_library_is_read_in_the_same_order_up_to_the_limit():
    files = data.standard_library_files()
    assert files == data.standard_library_files()
    assert not [f for f in files if "test" in f.parts]
    corpus = data.read_corpus(None, 300_000)
    assert 0 <= corpus.train.size + corpus.held_out.size - 300_000 < corpus.files
    assert corpus.files > 5
    assert corpus.fingerprint == data.read_corpus(None, 300_000).fingerprint
    assert corpus.fingerprint != data.read_corpus(None, 200_000).fingerprint


def test_files_are_held_out_whole_and_copies_are_read_once(tmp_path: Path):
    texts = [random_text(100, seed) for seed in range(30)]
    for i, text in enumerate([*texts, texts[9]]):
        (tmp_path / f"{i:02}.txt").write_bytes(text)
    corpus = data.read_corpus(str(tmp_path), 10**6)
    assert corpus.files == 30
    assert corpus.held_out.tobytes() == b"\n".join(texts[9::10])
    kept = [t for i, t in enumerate(texts) if i % 10 != 9]
    assert corpus.train.tobytes() == b"\n".join(kept)


def test_the_end_of_a_single_file_is_held_out(tmp_path: Path):
    text = random_text(1_000)
    (tmp_path / "one.txt").write_bytes(text)
    corpus = data.read_corpus(str(tmp_path / "one.txt"), 500)
    assert corpus.train.tobytes() == text[:450]
    assert corpus.held_out.tobytes() == text[450:500]


def test_what_is_not_text_is_skipped_and_counted(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"some text")
    (tmp_path / "b.bin").write_bytes(b"\xff\xfe")
    (tmp_path / "c.bin").write_bytes(b"a\0b")
    (tmp_path / ".hidden").write_bytes(b"hidden")
    corpus = data.read_corpus(str(tmp_path), 10**6)
    assert (corpus.files, corpus.skipped) == (1, 2)
    assert "1 files (2 unreadable or not text: skipped)" in str(corpus)


# -- batches -------------------------------------------------------------------------------------


def test_batches_are_the_same_for_the_same_seed_and_go_on_from_any_position():
    tokens = np.frombuffer(random_text(1_000), np.uint8)
    first = data.Batches(tokens, 4, 16, seed=3)
    batches = [next(first) for _ in range(3 * first.per_epoch)]
    again = data.Batches(tokens, 4, 16, seed=3)
    again.position = first.per_epoch + 1
    for inputs, targets in batches[again.position :]:
        np.testing.assert_array_equal(next(again)[0], inputs)
        np.testing.assert_array_equal(targets[:, :-1], inputs[:, 1:])
    other = next(data.Batches(tokens, 4, 16, seed=4))
    assert not np.array_equal(other[0], batches[0][0])


def test_an_epoch_gives_no_byte_twice():
    tokens = np.arange(1_000)  # so that a token is its place
    batches = data.Batches(tokens, 4, 16, seed=0)
    for _ in range(3):
        targets = np.concatenate([next(batches)[1].ravel() for _ in range(batches.per_epoch)])
        assert targets.size == np.unique(targets).size > 900


def test_held_out_batches_do_not_overlap_and_reach_over_the_text():
    tokens = np.arange(1_000)
    batches = data.held_out_batches(tokens, 4, 16, 5)
    targets = np.concatenate([targets.ravel() for _, targets in batches])
    assert targets.size == np.unique(targets).size == 5 * 4 * 16
    assert targets.min() < 50 and targets.max() > 900
    assert sum(len(x) for x, _ in data.held_out_batches(tokens[:50], 4, 16, 5)) == 3


def test_unigram_loss_is_the_cross_entropy_of_counts_plus_one():
    train, held_out = random_text(500, 0), random_text(300, 1) + b"Z" * 20
    counts = collections.Counter(train)
    batches = data.held_out_batches(np.frombuffer(held_out, np.uint8), 2, 16, 3)
    targets = [int(t) for _, target in batches for t in target.ravel()]
    expected = [-math.log((counts[t] + 1) / (len(train) + 256)) for t in targets]
    found = data.unigram_loss(np.frombuffer(train, np.uint8), batches)
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-12)


# -- model and training --------------------------------------------------------------------------


def small_model(context: int = 24) -> LanguageModel:
    config = ModelConfig(256, context, n_layers=2, n_heads=2, d_model=16, dropout=0.1)
    model = LanguageModel(config, rngs=nnx.Rngs(0))
    # Larger than for training, so that the likeliest token depends on all that came before.
    params = nnx.state(model, nnx.Param)
    nnx.update(model, nnx.map_state(lambda _, p: p.replace(p.value * 8), params))
    return model


def test_logits_depend_on_no_later_token():
    model = small_model()
    model.eval()
    tokens = np.frombuffer(random_text(48), np.uint8).reshape(2, 24).astype(np.int32)
    changed = tokens.copy()
    changed[:, 10:] += 1
    logits = nnx.jit(lambda model, tokens: model(tokens))
    before, after = logits(model, tokens), logits(model, changed)
    np.testing.assert_array_equal(before[:, :10], after[:, :10])
    assert not np.allclose(before[:, 10:], after[:, 10:])


def test_only_matrices_decay():
    params = nnx.state(small_model(), nnx.Param)
    decayed = {p[-1] for p, is_decayed in training.is_decayed(params).flat_state() if is_decayed}
    kept = {p[-1] for p, is_decayed in training.is_decayed(params).flat_state() if not is_decayed}
    assert decayed == {"kernel", "embedding"}
    assert kept == {"bias", "scale"}


def test_training_compiles_once_although_it_is_evaluated_in_between(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], tmp_path: Path
):
    traced = []
    inner = training.loss_and_logits
    monkeypatch.setattr(training, "loss_and_logits", lambda *args: traced.append(1) or inner(*args))
    # A size that no other test has, for compiled programs outlive a run.
    assert demo.main([*arguments, "--d-model", "12", "--out", str(tmp_path / "run")]) == 0
    assert len(traced) == 2  # one training step, one evaluation step


# -- generation ----------------------------------------------------------------------------------


def greedy_without_cache(model: LanguageModel, prompt: np.ndarray, count: int) -> list[int]:
    """The likeliest tokens, each from a whole forward pass over the same window of text."""
    context = model.config.context
    model = nnx.clone(model)
    model.eval()
    logits = nnx.jit(lambda model, tokens: model(tokens))
    text = list(prompt)
    start = max(0, len(text) - context)
    for _ in range(count):
        if len(text) - start > context:
            start = len(text) - context // 2
        window = text[start:]
        padded = jnp.array([window + [0] * (context - len(window))], jnp.int32)
        text.append(int(logits(model, padded)[0, len(window) - 1].argmax()))
    return [int(token) for token in text[len(prompt) :]]


@pytest.mark.parametrize("length", [1, 5, 24, 50])
def test_cached_and_uncached_greedy_decoding_are_equal(length: int):
    model = small_model()
    prompt = np.frombuffer(random_text(length), np.uint8)
    found = generation.generate(model, prompt, 40, temperature=0)
    expected = greedy_without_cache(model, prompt, 40)
    assert found.tolist() == expected
    assert len(set(expected)) > 3
    assert not nnx.state(model, nnx.Cache)  # the caches were a clone's


def test_a_sample_is_the_same_for_the_same_seed():
    model, prompt = small_model(), data.encode("leaf")
    one, again, other = (
        generation.generate(model, prompt, 30, temperature=9, top_k=50, seed=seed).tolist()
        for seed in (0, 0, 1)
    )
    assert one == again != other


def test_top_1_is_greedy():
    model, prompt = small_model(), data.encode("leaf")
    greedy = generation.generate(model, prompt, 20, temperature=0)
    drawn = generation.generate(model, prompt, 20, temperature=1.5, top_k=1)
    np.testing.assert_array_equal(drawn, greedy)


# -- runs ----------------------------------------------------------------------------------------


def restored(run: Path) -> tuple[nnx.State, dict[str, Any]]:
    """All arrays of a run's latest checkpoint, and its losses."""
    settings = options.Settings(**runs.read_description(run)["settings"])
    trainer = demo.Trainer(settings, data.read_corpus(settings.corpus, settings.max_bytes))
    with runs.checkpoints_of(run) as checkpoints:
        trainer.restore(checkpoints)
    curves = {"train": trainer.train_curve, "held_out": trainer.held_out_curve}
    return nnx.state(trainer.objects()), {"step": trainer.step, **curves}


def assert_same_run(one: Path, other: Path) -> None:
    """Parameters, optimizer, random keys and losses are the same, bit for bit."""
    (state, losses), (other_state, other_losses) = restored(one), restored(other)
    assert losses == other_losses
    pairs, other_pairs = dict(state.flat_state()), dict(other_state.flat_state())
    assert pairs.keys() == other_pairs.keys()
    for path, variable in pairs.items():
        assert bool((variable.value == other_pairs[path].value).all()), path


def test_a_run_leaves_curves_and_a_sample(whole_run: Path):
    assert sorted(p.name for p in whole_run.iterdir()) == sorted(runs.FILES)
    assert (whole_run / "loss.png").read_bytes().startswith(b"\x89PNG")
    rows = (whole_run / "loss.csv").read_text().splitlines()
    assert rows[0] == "step,train_loss,held_out_loss"
    assert [int(row.split(",")[0]) for row in rows[1:]] == list(range(0, STEPS + 1, 2))
    assert (whole_run / "sample.txt").read_text().startswith("def ")
    kept = sorted(int(p.name) for p in (whole_run / "checkpoints").iterdir())
    assert kept == [4, 8, 12]


@pytest.mark.parametrize("stop", [1, 5, 8])
def test_a_resumed_run_goes_on_bit_for_bit(
    stop: int, whole_run: Path, arguments: list[str], tmp_path: Path
):
    run = tmp_path / "run"
    assert demo.main([*arguments, "--out", str(run), "--stop-at", str(stop)]) == 0
    assert restored(run)[1]["step"] == stop
    assert demo.main(["--resume", "--out", str(run)]) == 0
    assert_same_run(run, whole_run)


def test_ctrl_c_saves_a_checkpoint_and_says_how_to_go_on(
    whole_run: Path,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    run = tmp_path / "run"
    inner = training.train_step

    def interrupted_step(model: Any, optimizer: nnx.Optimizer, metrics: Any, batch: Any) -> None:
        if int(optimizer.step) == 6:
            signal.raise_signal(signal.SIGINT)
        inner(model, optimizer, metrics, batch)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_step", interrupted_step)
        assert demo.main([*arguments, "--out", str(run)]) == 130
    assert f"Interrupted at step 7; to go on from there: --resume --out {run}" in (
        capsys.readouterr().out
    )
    assert demo.main(["--resume", "--out", str(run)]) == 0
    assert_same_run(run, whole_run)


def test_runs_are_numbered_and_the_latest_is_resumed(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert demo.main(["--resume"]) == 1
    assert "no run in out/language_model to resume" in error_line(capsys)
    for _ in range(2):
        assert demo.main([*arguments, "--stop-at", "1"]) == 0
    assert [r.name for r in runs.numbered_runs(Path("out/language_model"))] == ["001", "002"]
    assert demo.main(["--resume", "--stop-at", "3"]) == 0
    assert "--resume --out out/language_model/002" in capsys.readouterr().out
    assert restored(Path("out/language_model/002"))[1]["step"] == 3
    assert restored(Path("out/language_model/001"))[1]["step"] == 1


def test_a_finished_run_can_be_sampled_again_and_trained_further(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    assert demo.main([*arguments, "--out", str(run)]) == 0
    before = content(run / "checkpoints")
    capsys.readouterr()
    again = ["--resume", "--out", str(run), "--prompt", "leaf", "--seed", "0", "--profile"]
    assert demo.main(again) == 0
    assert (run / "sample.txt").read_text().startswith("leaf")
    assert content(run / "checkpoints") == before
    lines = capsys.readouterr().out.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("module ")) :]
    table = table[: table.index("temp: estimated; the rows add up to XLA's total")]
    assert table[0].split()[:7] == ["module", "phase", "FLOPs", "%", "bytes", "params", "temp"]
    assert {"forward", "backward", "update"} <= {word for line in table for word in line.split()}
    assert any(line.startswith("model.blocks.0.attention ") for line in table)
    assert table[-1].startswith("total ") and " 100.0 " in table[-1]
    assert max(map(len, table)) <= 80
    assert demo.main(["--resume", "--out", str(run), "--steps", str(STEPS + 4)]) == 0
    assert restored(run)[1]["step"] == STEPS + 4


def test_overwrite_begins_anew(whole_run: Path, arguments: list[str], tmp_path: Path):
    run = tmp_path / "run"
    assert demo.main([*arguments, "--out", str(run), "--seed", "1"]) == 0
    assert demo.main([*arguments, "--out", str(run), "--overwrite"]) == 0
    assert_same_run(run, whole_run)


# -- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--n-heads 3", "--d-model 16 is not a multiple of --n-heads 3"),
        ("--steps -5", "argument --steps: '-5' is not a positive whole number"),
        ("--steps many", "argument --steps: 'many' is not a positive whole number"),
        ("--warmup-steps 12", "--warmup-steps 12 leaves nothing of --steps 12"),
        ("--stop-at 13", "--stop-at 13 is beyond --steps 12"),
        ("--dropout 1", "argument --dropout: '1' is not a number from 0 to below 1"),
        ("--learning-rate nan", "argument --learning-rate: 'nan' is not a positive number"),
        ("--top-k 257", "argument --top-k: '257' is not a whole number from 1 to 256"),
        ("--resume --overwrite", "give one of them"),
        ("--overwrite", "--overwrite needs --out"),
        ("--depth 3", "unrecognized arguments: --depth 3"),
    ],
)
def test_bad_arguments(
    given: str,
    message: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    try:
        status = demo.main([*arguments, *given.split()])
    except SystemExit as stop:  # from argparse
        status = stop.code
    assert status == 2
    assert message in error_line(capsys)
    assert not list(tmp_path.iterdir())


def test_bad_corpora(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "run"
    (tmp_path / "small.txt").write_bytes(b"too small")
    (tmp_path / "binary.bin").write_bytes(b"\0" * 5_000)
    for name, message in [
        ("missing.txt", "there is no file or folder"),
        ("small.txt", "has 9 bytes to train on, and batches of 4 × 16 need 80"),
        ("binary.bin", "no text to train on"),
    ]:
        assert demo.main([*TINY, "--corpus", str(tmp_path / name), "--out", str(out)]) == 1
        assert message in error_line(capsys)
        assert not out.exists()


def test_nothing_else_is_overwritten(
    whole_run: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "run.json").write_text('{"format": "of another program"}')
    (tmp_path / "file").write_text("precious")
    for out, given, status, message in [
        (whole_run, [], 2, "--resume goes on with it, --overwrite deletes it"),
        (tmp_path, [], 1, "holds something else than a run"),
        (tmp_path, ["--overwrite"], 1, "holds something else than a run"),
        (tmp_path / "file", ["--overwrite"], 1, "is a file, not a folder"),
        (tmp_path / "file" / "run", [], 1, "cannot write to"),
    ]:
        before = content(whole_run), content(tmp_path)
        assert demo.main([*arguments, "--out", str(out), *given]) == status
        assert message in error_line(capsys)
        assert (content(whole_run), content(tmp_path)) == before


def test_resume_refuses_another_model_or_text(
    whole_run: Path, corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    resume = ["--resume", "--out", str(whole_run)]
    before = content(whole_run)
    assert demo.main([*resume, "--d-model", "32"]) == 2
    assert "has --d-model 16, not 32" in error_line(capsys)
    text = corpus_file.read_bytes()
    try:
        corpus_file.write_bytes(text.replace(b"carry", b"bury"))
        assert demo.main(resume) == 1
    finally:
        corpus_file.write_bytes(text)
    assert "is not the text that the run in" in error_line(capsys)
    assert demo.main(["--resume", "--out", str(tmp_path)]) == 1
    assert "holds no run of this program" in error_line(capsys)
    assert content(whole_run) == before


# After an error, orbax leaves coroutines behind that complain when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "notes"])
def test_a_damaged_checkpoint_is_noticed_and_an_earlier_one_can_be_used(
    damage: str,
    whole_run: Path,
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    run = tmp_path / "run"
    assert demo.main([*arguments, "--out", str(run)]) == 0
    latest = run / "checkpoints" / str(STEPS)
    largest = max((p for p in latest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    damaged = bytearray(largest.read_bytes())
    if damage == "flip":
        damaged[len(damaged) // 2] ^= 1
        largest.write_bytes(damaged)
    elif damage == "truncate":
        largest.write_bytes(damaged[: len(damaged) // 2])
    elif damage == "delete":
        largest.unlink()
    else:
        notes = latest / "notes" / "metadata"
        changed = {**json.loads(notes.read_text()), "position": 3}
        notes.write_text(json.dumps(changed))
    before = content(run)
    capsys.readouterr()
    assert demo.main(["--resume", "--out", str(run)]) == 1
    gc.collect()
    line = error_line(capsys)
    assert f"{latest}: the step is damaged" in line
    assert (
        f"restore(…, step=8), the latest step that is not; delete the folder of step {STEPS}"
        in line
    )
    assert content(run) == before
    for file in sorted(latest.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    latest.rmdir()
    assert demo.main(["--resume", "--out", str(run)]) == 0
    assert_same_run(run, whole_run)


def test_errors_name_the_cure():
    with pytest.raises(UsageError, match="leave the option out"):
        saved = dataclasses.asdict(options.Settings())
        options.resumed_settings(saved, {"seed": 1}, Path("run"))
    with pytest.raises(DemoError, match=r"run\.json has not the settings"):
        options.resumed_settings({"seed": 0}, {}, Path("run"))
    with pytest.raises(DemoError, match="--context"):
        data.check_size(data.Corpus("x", np.zeros(9), np.zeros(9), 1, 0), 4, 16)


# -- the whole program ---------------------------------------------------------------------------


def test_help():
    run = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True)
    assert run.returncode == 0
    assert not run.stderr
    for words in ("(default: 128)", "(default: 0)", "--resume", "examples:", "training:"):
        assert words in run.stdout


@pytest.mark.slow
def test_the_default_model_beats_the_unigram_within_80_steps(tmp_path: Path):
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--steps", "80", "--sample-bytes", "100"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    assert "Python's standard library" in run.stdout
    losses = {
        name: float(loss)
        for name, loss in re.findall(r"^(this|unigram) model +(\d\.\d+)", run.stdout, re.MULTILINE)
    }
    assert losses["this"] < 0.95 * losses["unigram"]
    assert 2 < losses["unigram"] < 4
    assert len((tmp_path / "out/language_model/001/sample.txt").read_bytes()) >= 100
