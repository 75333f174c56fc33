"""Write `tests/weights/flax_checkpoints/`: checkpoints by Flax's releases, for the tests to read.

    python tools/make_flax_checkpoints.py [0.11 …]

Each release gets a virtual environment of its own in a temporary folder, with JAX and orbax of its
time, and in it this script runs itself with `--write`: it trains `tests/weights/flax_programs.py`
for three steps and saves that in all the ways in which its users do. A release is one archive of
a folder for each way, and `expected.npz` with what the arrays were and what came of them.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "weights" / "flax_checkpoints"
RELEASES = {  # Flax, JAX (and jaxlib), orbax, optax
    "0.10.2": ("0.10.2", "0.4.38", "0.10.3", "0.2.4"),
    "0.10": ("0.10.7", "0.6.2", "0.11.16", "0.2.5"),
    "0.11": ("0.11.2", "0.7.2", "0.11.25", "0.2.5"),
    "0.12": ("0.12.8", "0.10.2", "0.12.8", "0.2.8"),
}
PACKAGES = "flax=={0} jax=={1} jaxlib=={1} orbax-checkpoint=={2} optax=={3}"


def main(releases: "list[str]") -> None:
    FOLDER.mkdir(exist_ok=True)
    for release in releases or RELEASES:
        with tempfile.TemporaryDirectory() as temporary:
            venv, written = Path(temporary) / "venv", Path(temporary) / "written"
            packages = PACKAGES.format(*RELEASES[release]).split()
            python = str(venv / "bin" / "python")
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            install = [python, "-m", "pip", "install", "--quiet", *packages]
            subprocess.run(install, check=True)
            command = [python, __file__, "--write", str(written)]
            subprocess.run(command, check=True, cwd=ROOT)
            pack(written, FOLDER / f"{release}.tar.xz")
        print(f"{release}: {(FOLDER / f'{release}.tar.xz').stat().st_size:,} bytes")


def pack(folder: Path, target: Path) -> None:
    with tarfile.open(target, "w:xz") as archive:  # what stands there twice costs nothing
        for file in sorted(folder.iterdir()):
            archive.add(file, file.name)


def write(folder: Path) -> None:
    """Train with the Flax that is installed, and save."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import orbax.checkpoint as ocp
    from flax import nnx

    sys.path.insert(0, str(ROOT))
    from tests.weights import flax_programs as programs

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    holds = not hasattr(nnx, "ModelAndOptimizer")  # 0.10: the optimizer holds its model

    def storable(state: Any) -> Any:
        """As the guides of the time before orbax knew typed keys have it."""
        if int(ocp.__version__.split(".")[1]) > 10:
            return state
        is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
        return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, state)

    model = programs.model_of(nnx, 0)
    optimizer, metrics = programs.optimizer_of(nnx, model), programs.metrics_of(nnx)
    beside = None
    if not holds:
        other = programs.model_of(nnx, 5)
        beside = other, programs.optimizer_beside(nnx, other)
    programs.train(nnx, model, optimizer, beside, metrics, 3)

    states = {
        "model": nnx.state(model),
        "params": nnx.state(model, nnx.Param),
        "holding": nnx.state(optimizer),
        "metrics": nnx.state(metrics),
    }
    if beside is not None:
        states |= {"other": nnx.state(beside[0]), "optimizer": nnx.state(beside[1])}
    expected = {
        f"{which}:{name}": array
        for which, state in states.items()
        for name, array in programs.named(nnx, state).items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        for which, state in states.items():
            checkpointer.save(folder / which, storable(state))
        pure = nnx.to_pure_dict if hasattr(nnx, "to_pure_dict") else lambda x: x.to_pure_dict()
        checkpointer.save(folder / "pure", storable(pure(states["model"])))
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder / "by_the_old_checkpointer", storable(states["model"]))
    with ocp.CheckpointManager(folder / "run_of_one") as manager:
        for step in (2, 3):
            manager.save(step, args=ocp.args.StandardSave(storable(states["holding"])))
    with ocp.CheckpointManager(folder / "run") as manager:
        items = {"averages": states["metrics"]}  # "metrics" is a name that orbax keeps
        if beside is None:
            items |= {"optimizer": states["holding"]}
        else:
            items |= {"model": states["other"], "optimizer": states["optimizer"]}
        saved = {name: ocp.args.StandardSave(storable(state)) for name, state in items.items()}
        manager.save(3, args=ocp.args.Composite(seen=ocp.args.JsonSave({"tokens": 48}), **saved))

    expected |= {f"results:{n}": x for n, x in programs.results(nnx, model, metrics).items()}
    model.eval()  # from here the program draws nothing that would tell the releases apart
    programs.train(nnx, model, optimizer, None, metrics, 1)
    after = programs.named(nnx, nnx.state(model, nnx.Param))
    expected |= {f"after:{name}": array for name, array in after.items()}
    expected |= {f"results_after:{n}": x for n, x in programs.results(nnx, model, metrics).items()}
    arrays: dict[str, Any] = expected
    np.savez_compressed(folder / "expected.npz", **arrays)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(Path(sys.argv[2]))
    else:
        main(sys.argv[1:])
