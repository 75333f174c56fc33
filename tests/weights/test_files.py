"""`save`, `load`, `inspect_file`: what is written is read, by refax and by others, and placed."""

import json
import math
import os
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import safe_open

from refax import nnx
from refax.weights import file_format


def make_model(seed: int = 0):
    rngs = nnx.Rngs(seed)
    model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs), nnx.relu)
    model.head = nnx.Linear(8, 4, rngs=rngs)
    model.head.kernel.value = model.head.kernel.value * 2
    return model


def same(one, other):
    a, b = nnx.state_dict(one), nnx.state_dict(other)
    return list(a) == list(b) and all(equal(a[n], b[n]) for n in a)


def equal(a, b):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return a.dtype == b.dtype and (a == b).all()
    return a.dtype == b.dtype and np.array_equal(a, b)  # of NumPy: nothing to compile


DTYPES = """
    bool uint8 int8 uint16 int16 uint32 int32 float16 bfloat16 float32 complex64 int4 uint4 int2
    float8_e4m3fn float8_e5m2 float8_e8m0fnu float8_e4m3fnuz float8_e5m2fnuz float8_e4m3b11fnuz
    float4_e2m1fn
""".split()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3)], ids=str)
def test_every_dtype_and_shape(tmp_path, dtype, shape):
    bits = np.random.default_rng(0).integers(1, 3, shape)  # 0 is no number in e8m0
    array = jnp.asarray(bits).astype(dtype)
    nnx.save(tmp_path / "x.safetensors", nnx.Param(array))
    target = nnx.Param(jnp.zeros(shape, dtype))
    nnx.load(tmp_path / "x.safetensors", target)
    assert target.value.dtype == dtype and target.shape == shape
    assert (np.asarray(target.value) == np.asarray(array)).all()
    info = nnx.inspect_file(tmp_path / "x.safetensors")
    assert info.tensors["value"].dtype == dtype and info.tensors["value"].shape == shape


def test_double_precision(tmp_path):
    with jax.enable_x64(True):
        for dtype in (jnp.float64, jnp.int64, jnp.uint64, jnp.complex128):
            array = jnp.asarray(np.array([1 / 3, -2.0, 1e3])).astype(dtype)
            nnx.save(tmp_path / "x", nnx.Param(array), overwrite=True)
            target = nnx.Param(jnp.zeros(3, dtype))
            nnx.load(tmp_path / "x", target)
            assert target.value.dtype == dtype and (target.value == array).all()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_random_keys(tmp_path, impl):
    keys = jax.random.split(jax.random.key(3, impl=impl), 4)
    nnx.save(tmp_path / "x", nnx.Variable(keys))
    target = nnx.Variable(jax.random.split(jax.random.key(0, impl=impl), 4))
    nnx.load(tmp_path / "x", target)
    assert target.value.dtype == keys.dtype
    assert (jax.random.key_data(target.value) == jax.random.key_data(keys)).all()


def test_a_model_an_optimizer_and_metrics_together(tmp_path):
    def make(seed):
        model = make_model(seed)
        return {
            "model": model,
            "optimizer": nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param),
            "metrics": nnx.MultiMetric(loss=nnx.metrics.Average("loss")),
        }

    @nnx.jit  # one compilation, rather than one for each operation
    def step(run):
        grads = nnx.grad(lambda m: m.head(m.layers[0](jnp.ones((2, 4)))).sum())(run["model"])
        run["optimizer"].update(run["model"], grads)
        run["metrics"].update(loss=jnp.array([1.0, 2.0]))

    run = make(0)
    step(run)
    nnx.save(tmp_path / "run.safetensors", run)
    other = make(1)
    nnx.load(tmp_path / "run.safetensors", other)
    assert same(run, other)
    assert other["metrics"].compute()["loss"] == 1.5


def test_others_read_it(tmp_path):
    model = make_model()
    nnx.save(tmp_path / "m.safetensors", model, filter=nnx.Param, metadata={"made by": "a test"})
    theirs = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    ours = nnx.state_dict(model, filter=nnx.Param)
    assert theirs.keys() == ours.keys()
    assert all((theirs[name] == np.asarray(ours[name])).all() for name in ours)
    with safe_open(tmp_path / "m.safetensors", "np") as file:
        assert file.metadata()["made by"] == "a test"


def test_what_others_wrote_is_read(tmp_path):
    model = make_model()
    arrays = {n: np.asarray(x) + 1 for n, x in nnx.state_dict(model, filter=nnx.Param).items()}
    safetensors.numpy.save_file(arrays, tmp_path / "m.safetensors", {"format": "pt"})
    assert nnx.load(tmp_path / "m.safetensors", model, filter=nnx.Param) == ([], [], {})
    for name, x in nnx.state_dict(model, filter=nnx.Param).items():
        assert (np.asarray(x) == arrays[name]).all()
    assert nnx.inspect_file(tmp_path / "m.safetensors").metadata == {"format": "pt"}


def test_a_file_without_metadata_and_with_gaps_in_its_order(tmp_path):
    header = {
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        "a": {"dtype": "I32", "shape": [], "data_offsets": [0, 4]},
    }
    text = json.dumps(header, indent=3).encode()
    data = np.int32(7).tobytes() + np.array([1.5, 2.5], np.float32).tobytes()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + data)
    target = {"a": nnx.Variable(jnp.array(0)), "b": nnx.Param(jnp.zeros(2))}
    nnx.load(tmp_path / "x", target)
    assert target["a"].value == 7 and (target["b"].value == jnp.array([1.5, 2.5])).all()


def test_a_variable_of_several_arrays_alone_and_tied(tmp_path):
    class Model(nnx.Module):
        def __init__(self, start, tied):
            self.a = nnx.Param({"w": jnp.full(2, start), "b": jnp.full(3, 2 * start)})
            self.z = self.a if tied else nnx.Param(jax.tree.map(jnp.zeros_like, self.a.value))

    nnx.save(tmp_path / "m", Model(1.0, tied=True))
    info = nnx.inspect_file(tmp_path / "m")
    assert list(info.tensors) == ["a.b", "a.w"]
    assert info.aliases == {"z.b": "a.b", "z.w": "a.w"}
    for tied in (True, False):
        model = Model(0.0, tied)
        nnx.load(tmp_path / "m", model)
        for variable in (model.a, model.z):
            assert variable.value["w"].tolist() == [1, 1]
            assert variable.value["b"].tolist() == [2, 2, 2]

    nnx.save(tmp_path / "v", Model(1.0, tied=True).a)
    assert nnx.inspect_file(tmp_path / "v").aliases == {}
    nnx.load(tmp_path / "v", alone := Model(0.0, tied=True).a)
    assert alone.value["b"].tolist() == [2, 2, 2]


def test_tied_arrays_are_written_once_and_read_untied(tmp_path):
    class Model(nnx.Module):
        def __init__(self, tied, rngs):
            self.embed = nnx.Param(jax.random.normal(rngs(), (3, 2)))
            self.out = self.embed if tied else nnx.Param(jax.random.normal(rngs(), (3, 2)))

    tied = Model(True, nnx.Rngs(0))
    nnx.save(tmp_path / "m", tied)
    info = nnx.inspect_file(tmp_path / "m")
    assert list(info.tensors) == ["embed"] and info.aliases == {"out": "embed"}
    assert "out = embed" in repr(info)
    for model in (Model(True, nnx.Rngs(1)), Model(False, nnx.Rngs(1))):
        assert nnx.load(tmp_path / "m", model) == ([], [], {})
        assert (model.out.value == tied.embed.value).all()


class Tensor:
    """What of PyTorch's tensors is asked."""

    def __init__(self, array):
        self.array = array

    def detach(self):
        return self

    cpu = detach

    def numpy(self):
        return self.array


def test_tensors_of_another_library_are_written_wherever_they_are(tmp_path):
    a, b, c, d = (np.full(2, x, np.float32) for x in range(4))
    nested = {"a": Tensor(a), "m": {"b": Tensor(b)}, "l": [Tensor(c), {"d": Tensor(d)}]}
    nnx.save(tmp_path / "t.safetensors", nested)
    found = safetensors.numpy.load_file(tmp_path / "t.safetensors")
    assert found.keys() == {"a", "m.b", "l.0", "l.1.d"}
    for name, array in {"a": a, "m.b": b, "l.0": c, "l.1.d": d}.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_mapping_is_written_under_its_names(tmp_path):
    """What gives arrays by dotted names, and what takes them, have the same names."""
    model, other = make_model(), make_model(1)
    arrays = nnx.state_dict(model, filter=nnx.Param)
    assert nnx.state_dict(arrays) == arrays
    nnx.save(tmp_path / "model.safetensors", arrays, metadata={"format": "pt"})
    assert sorted(safetensors.numpy.load_file(tmp_path / "model.safetensors")) == sorted(arrays)
    nnx.load(tmp_path / "model.safetensors", other, filter=nnx.Param)
    assert same(nnx.state(model, nnx.Param), nnx.state(other, nnx.Param))
    empty = {name: jnp.zeros_like(array) for name, array in arrays.items()}
    nnx.load(tmp_path / "model.safetensors", empty)
    assert all(equal(empty[name], array) for name, array in arrays.items())
    part = {"layers.0.bias": None, "head": {"kernel.of": arrays["head.kernel"]}}
    assert [*nnx.state_dict(part)] == ["head['kernel.of']"]  # no mapping of names to arrays


def test_the_brackets_of_former_files_are_read(tmp_path):
    safetensors.numpy.save_file({"['a.b']": np.ones(2, np.float32)}, tmp_path / "x.safetensors")
    arrays = {"a.b": jnp.zeros(2)}
    nnx.load(tmp_path / "x.safetensors", arrays)
    assert arrays["a.b"].tolist() == [1, 1]


@pytest.mark.parametrize("size", ["5GB", "100B"])
def test_a_folder_as_hugging_face_lays_it_out(tmp_path, size):
    model, other = make_model(), make_model(1)
    nnx.save(tmp_path / "model.safetensors", model, max_file_size=size)
    (tmp_path / "config.json").write_text("{}")
    assert (tmp_path / "model.safetensors").exists() == (size == "5GB")
    assert nnx.load(tmp_path, other) == ([], [], {})
    assert same(model, other)
    assert nnx.inspect_file(tmp_path).tensors.keys() == nnx.state_dict(model).keys()


def test_several_files(tmp_path):
    model = make_model()
    path = tmp_path / "model.safetensors"
    nnx.save(path, model, max_file_size=200)
    files = sorted(x.name for x in tmp_path.iterdir())
    assert files[0] == "model-00001-of-00002.safetensors"
    assert files[-1] == "model.safetensors.index.json" and len(files) == 3
    index = json.loads((tmp_path / files[-1]).read_text())
    assert list(index["weight_map"]) == list(nnx.state_dict(model))
    size = sum(
        x.nbytes
        for x in nnx.state_dict(model).values()
        if x.dtype != model.layers[1].rngs.key.dtype
    )
    assert index["metadata"]["total_size"] == size + 8  # a key's data
    merged = {}
    for name in files[:-1]:
        merged |= safetensors.numpy.load_file(tmp_path / name)
    assert merged.keys() == nnx.state_dict(model).keys()
    for given in (path, tmp_path / files[-1]):
        other = make_model(1)
        nnx.load(given, other)
        assert same(model, other)
    assert len(nnx.inspect_file(path).files) == 2


@pytest.mark.parametrize("sizes", [(200, 200), (200, "1GB"), ("1GB", 200), ("5 KB", "5kb")])
def test_overwriting(tmp_path, sizes):
    path = tmp_path / "model.safetensors"
    nnx.save(path, make_model(0), max_file_size=sizes[0])
    before = sorted(x.name for x in tmp_path.iterdir())
    with pytest.raises(FileExistsError, match=r"exists already.\nCure: overwrite=True"):
        nnx.save(path, make_model(1), max_file_size=sizes[1])
    assert sorted(x.name for x in tmp_path.iterdir()) == before
    nnx.save(path, make_model(1), max_file_size=sizes[1], overwrite=True)
    several = sizes[1] == 200
    assert len(list(tmp_path.iterdir())) == (3 if several else 1)  # nothing of the one before
    other = make_model(2)
    nnx.load(path, other)
    assert same(other, make_model(1))


def test_only_what_the_filter_matches(tmp_path):
    nnx.save(tmp_path / "m", make_model(0), filter=nnx.Param)
    model = make_model(1)
    with pytest.raises(ValueError, match=r"missing: `layers.1.rngs.count`"):
        nnx.load(tmp_path / "m", model)
    nnx.load(tmp_path / "m", model, filter=nnx.Param)
    assert nnx.load(tmp_path / "m", model, strict=False).missing == [
        "layers.1.rngs.count",
        "layers.1.rngs.key",
    ]


def test_loading_into_an_abstract_model_on_a_mesh(tmp_path):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))

    def make():
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
        return nnx.Linear(4, 16, kernel_init=init, rngs=nnx.Rngs(0))

    model = make()
    nnx.save(tmp_path / "m", model)
    abstract = nnx.eval_shape(make)
    nnx.load(tmp_path / "m", abstract, mesh=mesh)
    assert abstract.kernel.value.sharding == NamedSharding(mesh, PartitionSpec(None, "model"))
    assert abstract.bias.value.sharding == NamedSharding(mesh, PartitionSpec())
    assert (abstract.kernel.value == model.kernel.value).all()
    _, state = nnx.get_abstract_model(make, mesh)  # shardings in the abstract arrays
    graphdef = nnx.graphdef(model)
    planned = nnx.merge(graphdef, state)
    nnx.load(tmp_path / "m", planned)
    assert planned.kernel.value.sharding == NamedSharding(mesh, PartitionSpec(None, "model"))


BOXES = [
    (),
    (slice(0, 2),),
    (slice(3, 7), slice(None)),
    (slice(None), slice(1, 2)),
    (slice(None), slice(None), slice(2, 5)),
    (slice(2, 4), slice(0, 3), slice(4, 5)),
    (slice(0, 0),),
]


@pytest.mark.parametrize("piece", [8, 24, 64, 1 << 20])
@pytest.mark.parametrize("box", BOXES, ids=str)
def test_a_slice_reads_only_its_pieces(tmp_path, monkeypatch, piece, box):
    monkeypatch.setattr(file_format, "PIECE", piece)
    array = np.arange(7 * 3 * 5, dtype=np.int32).reshape(7, 3, 5)
    file_format.write_file(tmp_path / "x", {"a": array}, {})
    read = 0
    preadv = os.preadv

    def counted(*args):
        nonlocal read
        read += sum(map(len, args[1]))
        return preadv(*args)

    with file_format.open_file(tmp_path / "x") as file:
        monkeypatch.setattr(os, "preadv", counted)
        found = file.read("a", box)
        monkeypatch.setattr(os, "preadv", preadv)
    assert (found == array[box]).all() and found.shape == array[box].shape
    if len(box) == 1:  # neighbouring rows
        assert read <= found.nbytes + 2 * piece
    assert read <= array.nbytes + piece


def test_reading_needs_no_second_copy(tmp_path, monkeypatch):
    """Arrays are read piece by piece: at no time more than one piece is in memory beside them."""
    monkeypatch.setattr(file_format, "PIECE", 1024)
    nnx.save(tmp_path / "x", nnx.Param(jnp.ones((64, 1024))))
    sizes = []
    preadv = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, to, at: sizes.append(len(to[0])) or preadv(fd, to, at)
    )
    nnx.load(tmp_path / "x", nnx.Param(jnp.zeros((64, 1024))))
    assert max(sizes) == 1024 and sum(sizes) == 64 * 1024 * 4


def test_metadata_is_of_texts(tmp_path):
    for metadata in ({"a": 1}, {1: "a"}, {"refax.own": "x"}):
        with pytest.raises(TypeError, match="Cure: json.dumps"):
            nnx.save(tmp_path / "m", make_model(), metadata=metadata)
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_value_is_not_written(tmp_path):
    with pytest.raises(
        ValueError, match=r"`bias` has no value that could be written: it is a Shape"
    ):
        nnx.save(tmp_path / "m", nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0))))
    with pytest.raises(ValueError, match=r"`value` has no value"):
        jax.jit(lambda x: nnx.save(tmp_path / "m", nnx.Param(x)))(1.0)
    assert list(tmp_path.iterdir()) == []


def test_sizes_of_files():
    from refax.weights.files import _bytes

    assert [_bytes(x) for x in ("5GB", "1.5 kb", 7, "7", "2m", "3 B")] == [
        5 * 10**9, 1500, 7, 7, 2 * 10**6, 3
    ]  # fmt: skip
    for wrong in ("5 apples", "", 0, -1, "GB"):
        with pytest.raises(ValueError, match="Cure: bytes, or a text like '500MB'"):
            _bytes(wrong)


def test_a_whole_number_of_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(file_format, "PIECE", 16)
    for n in (3, 4, 5, 8):
        array = np.arange(n, dtype=np.float32)
        path = tmp_path / str(n)
        file_format.write_file(path, {"a": array}, {})
        with file_format.open_file(path) as file:
            assert (file.read("a") == array).all()
        header = json.loads(path.read_bytes()[8:].split(b"]}}")[0] + b"]}}")
        own = json.loads(header["__metadata__"]["refax.checksums"])
        assert len(own["a"]) == 8 * math.ceil(n / 4)


@pytest.mark.parametrize("spec", [PartitionSpec("x"), PartitionSpec(None, "x"), PartitionSpec()])
def test_saving_leaves_no_copy_on_the_host(tmp_path, spec):
    """JAX keeps the NumPy array that it makes of one that is spread, for the next time."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    numbers = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    array = jax.device_put(numbers, NamedSharding(mesh, spec))
    nnx.save(tmp_path / "x", nnx.Param(array))
    assert (safetensors.numpy.load_file(tmp_path / "x")["value"] == numbers).all()
    assert array._npy_value is None  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("size", [0, 7, 511, 4088, 4096, 1 << 20, (1 << 24) + 5])
def test_files_of_the_version_before(tmp_path, monkeypatch, size):
    """Their checksums were CRC-32s of all bytes."""

    def crc(number, block):
        return zlib.crc32(block, number)

    data = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    with monkeypatch.context() as before:
        before.setattr(file_format, "VERSION", 1)
        before.setattr(file_format, "_sums", crc)
        file_format.write_file(tmp_path / "x", {"a": data}, {})
    with file_format.open_file(tmp_path / "x") as file:
        assert (file.read("a") == data).all()
    if size:
        content = bytearray((tmp_path / "x").read_bytes())
        content[-1] ^= 1
        (tmp_path / "x").write_bytes(content)
        with file_format.open_file(tmp_path / "x") as file:
            with pytest.raises(nnx.WeightsFileError, match="`a` is not as it was written"):
                file.read("a")
