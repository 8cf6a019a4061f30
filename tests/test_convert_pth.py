"""PyTorch checkpoints are read without PyTorch: bit for bit, and nothing in them is executed.

PyTorch is the oracle where it is installed. tests/golden/pytorch has two files that it wrote.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import pathlib
import pickletools
import random
import struct
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Iterator

import keras
import numpy as np
import pth_files as files
import pytest
from contracts import noise, raises_line, script
from fuzz_mutations import mutated
from process_memory import forget_peak, memory

from benchmarks.golden import VOC, golden, weights
from deeplab_keras.checkpoints.folder import load_checkpoint
from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.convert import conversion, pth_pickle, torchvision
from deeplab_keras.convert.initial import initialize
from deeplab_keras.convert.pth import read_pth, write_pth
from deeplab_keras.convert.transfer import slots
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.zoo import registry as zoo

MEMORY = 64 << 20  # bytes that reading may take beyond the size of the file
SMALL = "lrasppnet_mobilenetv3sos8_voc"
formats = pytest.mark.parametrize("form", files.FORMATS)


@pytest.fixture(autouse=True)
def without_side_effects(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hostile files run in an empty folder, in which they must not create their file."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / files.CANARY).exists()


def read(data: bytes) -> dict[str, np.ndarray]:
    pathlib.Path("a.pth").write_bytes(data)
    return read_pth("a.pth")


def assert_same(found, expected) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


def loaded(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays that PyTorch reads."""
    import torch

    state = torch.load(path, weights_only=True)
    state = state.get("model", state.get("state_dict", state))
    short = (torch.float16, torch.bfloat16)
    tensors = {name: value.detach() for name, value in state.items() if torch.is_tensor(value)}
    return {
        name: (value.float() if value.dtype in short else value).contiguous().numpy()
        for name, value in tensors.items()
    }


# === Values ===


@formats
def test_files_of_pytorch_are_read_without_it(form, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = read_pth(files.GOLDEN / f"{form}.pth")
    assert_same(found, files.golden_state())
    found["conv.weight"][1, 2] = 9
    assert found["conv.shared"][1, 2] == 9 == found["conv.transposed"][2, 1]


@formats
def test_a_pickle_by_hand_is_read(form):
    found = read(files.in_format(form, files.checkpoint()))
    assert_same(found, {"a.weight": files.VALUES.reshape(3, 4)})
    for function in ("_rebuild_tensor", "_rebuild_tensor_v3"):
        value = files.tensor((3, 4), (4, 1), function=f"torch._utils.{function}")
        data = files.in_format(form, files.pickled(files.dict_of({"module.w": value})))
        if function == "_rebuild_tensor":  # of PyTorch 0.3
            assert_same(read(data), {"w": files.VALUES.reshape(3, 4)})
        else:
            with raises_line("w is not a plain tensor: torch._utils._rebuild_tensor_v3"):
                read(data)


def test_views_of_storages_in_old_files():
    view = files.tuple_of(files.text("v"), files.integer(2), files.integer(8))
    value = files.tensor((2, 3), (4, 1), 1, stored=files.storage(12, view=view))
    data = files.as_stream(files.pickled(files.dict_of({"w": value})))
    assert_same(read(data), {"w": files.VALUES[3:11].reshape(2, 4)[:, :3]})
    value = files.tensor((2, 3), (4, 1), 2, stored=files.storage(12, view=view))
    with raises_line("w has values outside of its storage"):
        read(files.as_stream(files.pickled(files.dict_of({"w": value}))))


@pytest.mark.package("torch")
@formats
@pytest.mark.parametrize("wrapped", ["model", "state_dict", ""])
def test_every_tensor_is_the_one_that_pytorch_reads(form, wrapped):
    import torch

    draw = torch.Generator().manual_seed(1)
    base = torch.randn(6, 5, 4, generator=draw)
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    finite = bits[torch.isfinite(bits.view(torch.float16))]
    short = bits[torch.isfinite(bits.view(torch.bfloat16))]
    state = {
        "float": base,
        "double": base.double(),
        "every half": finite.view(torch.float16),
        "every bfloat16": short.view(torch.bfloat16),
        **{
            str(kind): torch.arange(-3, 9).to(kind).reshape(3, 4).t()
            for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
        },
        "complex": torch.complex(base, base),
        "permuted": base.permute(2, 0, 1),
        "part": base[1:5:2, ::3, 1:],
        "diagonal": base[0].diagonal(),
        "channels last": base[None].contiguous(memory_format=torch.channels_last),
        "shared": base.view(-1)[7:],
        "parameter": torch.nn.Parameter(base),
        "of a parameter": torch.nn.Parameter(base.double()).detach(),
        "buffer": torch.nn.Parameter(base[0], requires_grad=False),
        "scalar": torch.tensor(3.5),
        "counter": torch.tensor(7),
        "empty": torch.zeros(3, 0),
        "not a tensor": 3,
    }
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.randn(2, 3, 8, 8, generator=draw)).sum().backward()
    optimizer.step()
    state |= network.state_dict()
    content = (
        {wrapped: state, "optimizer": optimizer.state_dict(), "epoch": 3} if wrapped else state
    )
    torch.save(content, "a.pth", _use_new_zipfile_serialization=form == "zip")
    assert_same(read_pth("a.pth"), loaded("a.pth"))


@pytest.mark.package("torch")
@formats
def test_the_zoo_and_files_of_our_own(form):
    """All tensors of the reference's systems, with different values each."""
    import torch

    pool = torch.arange(1 << 24, dtype=torch.float32)
    for name in VOC:
        starts = itertools.cycle(range(0, 1 << 20, 4099))
        state = {}
        for key, (shape, _, _) in golden(name).tensors.items():
            size = int(np.prod(shape))
            start = next(starts)
            state[key] = pool[start : start + size].reshape(shape).clone()
        torch.save({"model": state}, "a.pth", _use_new_zipfile_serialization=form == "zip")
        found = read_pth("a.pth")
        assert_same(found, loaded("a.pth"))
    write_pth("b.pth", found)
    assert_same(read_pth("b.pth"), loaded("b.pth"))
    both = torch.load("b.pth", weights_only=True, mmap=True)["model"]
    counters = [name for name in both if name.endswith("num_batches_tracked")]
    assert len(counters) == sum(name.endswith("running_var") for name in found)
    assert all(both[name].dtype == torch.int64 and both[name].item() == 0 for name in counters)
    assert all(np.array_equal(both[name].numpy(), value) for name, value in found.items())


@pytest.mark.package("torch")
@formats
def test_objects_besides_the_weights_are_ignored(form):
    """PyTorch itself refuses this file without `weights_only=False`."""
    import argparse
    import collections
    import datetime

    import torch

    weight = torch.arange(6.0).reshape(2, 3)
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    content = {
        "meta": {
            "args": argparse.Namespace(rate=0.1, path=pathlib.PosixPath("/tmp")),
            "time": datetime.datetime(2020, 7, 8),
            "score": np.float64(0.5),
            "scores": np.arange(3.0),
            "classes": {"a", "b"},
            "counts": collections.defaultdict(int, {"a": 1}),
            ("a", 1): [torch.float32, torch.device("cpu"), torch.Size([1, 2])],
        },
        "optimizer": optimizer.state_dict(),
        "schedule": torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict(),
        "network": network,
        "state_dict": collections.OrderedDict({"module.w": weight}),
    }
    torch.save(content, "a.pth", _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load("a.pth", weights_only=True)
    assert_same(read_pth("a.pth"), {"w": weight.numpy()})


# === Hostile files ===


@formats
@pytest.mark.parametrize("value", files.RUNS_CODE)
def test_calls_are_refused(form, value):
    with raises_line("^a.pth: refused, because loading it would run code in the file") as error:
        read(files.in_format(form, files.checkpoint(files.RUNS_CODE[value])))
    assert str(error.value).isprintable()


@formats
@pytest.mark.parametrize("value", files.UNKNOWN_INSTRUCTIONS)
def test_instructions_that_torch_never_writes_are_refused(form, value):
    with raises_line("not written by torch.save .unknown pickle instruction 0x"):
        read(files.in_format(form, files.checkpoint(files.UNKNOWN_INSTRUCTIONS[value])))


def test_every_other_instruction_of_pickle_is_refused():
    known = "PROTO STOP MARK GLOBAL REDUCE BUILD NEWOBJ BINPERSID APPEND APPENDS SETITEM SETITEMS "
    known += "NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE BINSTRING "
    known += "SHORT_BINSTRING EMPTY_LIST EMPTY_DICT EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT "
    known += "LONG_BINPUT BINGET LONG_BINGET"
    codes = {code.name: code.code.encode("latin1") for code in pickletools.opcodes}
    assert {*pth_pickle._INSTRUCTIONS, b"."} == {codes[name] for name in known.split()}


@formats
@pytest.mark.parametrize("value", files.MALFORMED)
def test_malformed_pickles_are_refused(form, value):
    with raises_line("^a.pth: .*(download it again, or give another file|torch.save)") as error:
        read(files.in_format(form, files.checkpoint(files.MALFORMED[value])))
    assert str(error.value).isprintable() and len(str(error.value)) < 400


@formats
@pytest.mark.parametrize("value", files.BAD_TENSORS)
def test_tensors_outside_of_their_storages_are_refused(form, value):
    weight, message = files.BAD_TENSORS[value]
    data = files.pickled(files.dict_of({"a.weight": weight}))
    with raises_line(message) as error:
        read(files.in_format(form, data))
    assert str(error.value).isprintable()


@formats
@pytest.mark.parametrize("value", files.HARMLESS)
def test_harmless_values_besides_the_weights(form, value):
    extra, storages = files.HARMLESS[value], {"0": files.VALUES.tobytes()}
    found = read(files.in_format(form, files.checkpoint(extra), storages=storages))
    assert_same(found, {"a.weight": files.VALUES.reshape(3, 4)})


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "k" * 400])
def test_names_that_would_break_a_message_are_refused(name):
    data = files.pickled(files.dict_of({name: files.tensor((3, 4), (4, 1))}))
    with raises_line("a tensor has no readable name"):
        read(files.as_zip(data))


def measured(data: bytes) -> tuple[str, dict[str, np.ndarray]]:
    """Reads a file, and checks the time and the memory, and that errors have one line.

    Returns:
        The error ("" if there is none), and the arrays.
    """
    pathlib.Path("a.pth").write_bytes(data)
    forget_peak()
    before, start = memory("VmRSS"), time.process_time()
    error, arrays = "", {}
    try:
        arrays = read_pth("a.pth")
    except UserError as caught:
        error = str(caught)
        assert error.isprintable() and error.startswith("a.pth: "), error
    assert time.process_time() - start < 10
    taken = memory("VmHWM") - before
    assert taken < len(data) + MEMORY, (taken >> 20, error)
    return error, arrays


@pytest.mark.parametrize("value", files.bombs())
def test_bombs_take_neither_memory_nor_time(value):
    error, _ = measured(files.as_zip(files.checkpoint(files.bombs()[value])))
    assert bool(error) == (value not in files.READABLE_BOMBS), error


@pytest.mark.slow
@pytest.mark.parametrize("value", files.bombs())
def test_every_allocation_for_a_bomb_is_counted(value):
    """As above, but exact, and also with half of the bomb."""
    data = files.bombs()[value]
    for bomb in (data, data[: len(data) // 2]):
        content = files.as_zip(files.checkpoint(bomb))
        pathlib.Path("a.pth").write_bytes(content)
        tracemalloc.start()
        with contextlib.suppress(UserError):
            read_pth("a.pth")
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(f"{value}: {taken / 1e6:.0f} MB for a file of {len(content) / 1e6:.1f} MB")
        assert taken < len(content) + MEMORY


def opcode_swapped(data: bytes, numbers: random.Random) -> bytes:
    """A pickle with another instruction in some places."""
    places = [place for _, _, place in pickletools.genops(data) if place is not None]
    copy, codes = bytearray(data), [code.code.encode("latin1")[0] for code in pickletools.opcodes]
    for _ in range(numbers.choice((1, 1, 2, 5))):
        copy[numbers.choice(places)] = numbers.choice(codes)
    return bytes(copy)


@pytest.mark.parametrize("kind", [*files.FORMATS, "pickle", "instructions"])
def test_damaged_files_give_one_line_or_tensors(kind):
    """1,200 files. The fuzz lane reads others in a separate process."""
    good = (files.GOLDEN / f"{kind if kind in files.FORMATS else 'zip'}.pth").read_bytes()
    with zipfile.ZipFile(files.GOLDEN / "zip.pth") as archive:
        members = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    expected, refused = files.golden_state(), 0
    for number in range(300):
        if kind in files.FORMATS:
            data = mutated(good, kind, number)[1]
        else:
            numbers = random.Random(f"{kind}/{number}")
            pickle = members["data.pkl"]
            if kind == "pickle":
                pickle = mutated(pickle, kind, number)[1]
            else:
                pickle = opcode_swapped(pickle, numbers)
            data = files.as_zip(pickle, {}, {k: v for k, v in members.items() if k != "data.pkl"})
        error, arrays = measured(data)
        refused += bool(error)
        if kind == "zip" and not error:
            assert_same(arrays, expected)
    print(f"{kind}: {refused} of 300 refused")
    assert refused > 100


# === The formats ===


def test_a_zip_with_claims_beyond_the_file_is_refused():
    good = files.as_zip(files.checkpoint())
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        directory, info = archive.start_dir, archive.getinfo("archive/data/0")
    entry = good.rindex(b"archive/data/0") - 46
    local = info.header_offset

    def changed(*changes: tuple[int, bytes]) -> bytes:
        copy = bytearray(good)
        for place, value in changes:
            copy[place : place + len(value)] = value
        return bytes(copy)

    huge = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    end = len(good) - 22
    many = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0)
        + b"%04d" % (number % 10_000)
        for number in range(60_000)
    )
    total = len(many) + len(good) - directory - 22
    cases = {
        "another size": changed((entry + 20, huge)),
        "another size in both headers": changed((entry + 20, huge), (local + 18, huge)),
        "a place outside": changed((entry + 42, struct.pack("<I", 0x7FFFFFFF))),
        "compression": changed((entry + 10, b"\x08\0"), (local + 8, b"\x08\0")),
        "encryption": changed((entry + 8, b"\x01\0"), (local + 6, b"\x01\0")),
        "checksum": changed((entry + 16, b"\0\0\0\0"), (local + 14, b"\0\0\0\0")),
        "a huge table of contents": changed((end + 12, b"\xff\xff\xff\x7f")),
        "a table of contents of 3 MB": good[:directory]
        + many
        + good[directory:end]
        + good[end : end + 12]
        + struct.pack("<II", total, directory)
        + b"\0\0",
        "bytes at the end": good + b"\0" * 30,
        "a comment": good[:-2] + b"\x01\0a",
        "no end": good[:-1],
        "a missing 64-bit table": good[:end]
        + struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
        + good[end:],
        "a 64-bit table of contents of exabytes": good[:end]
        + struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 5, 5, 1 << 60, 0)
        + struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
        + good[end:],
    }
    assert read(changed())
    for name, data in cases.items():
        error, _ = measured(data)
        assert error and ("table of contents" in error) == ("table of" in name), (name, error)
        print(name, error, sep=": ")


def test_members_of_a_zip_are_checked():
    pickle, values = files.checkpoint(), {"0": files.VALUES.tobytes()}
    with raises_line("written on a big-endian machine"):
        read(files.as_zip(pickle, values, {"byteorder": b"big"}))
    with raises_line("a zip file without data.pkl, not a PyTorch checkpoint"):
        read(files.as_zip(pickle, values, {"other/data.pkl": pickle}))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", "a")
    with raises_line("a zip file without data.pkl"):
        read(stream.getvalue())
    with zipfile.ZipFile(stream, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2):
            archive.writestr("archive/data.pkl", pickle)
    with raises_line("truncated or damaged"):
        read(stream.getvalue())
    optimizer = {**values, "1": b"momentum" * 9}
    good = files.as_zip(pickle, optimizer)
    assert list(read(good)) == ["a.weight"]
    with raises_line("'archive/data/1' does not match its checksum"):
        read(good.replace(b"momentum", b"moNentum", 1))


def test_the_parts_of_a_stream_are_checked():
    pickle, values = files.checkpoint(), files.VALUES.tobytes()
    good = files.as_stream(pickle)
    assert read(good)
    for bad in (good[:-1], good[:-48], good[:-52], good[:-60], good[:60], good[:20]):
        with raises_line("truncated or damaged"):
            read(bad)
    with raises_line("5 bytes after its last tensor"):
        read(good + b"12345")
    for storages in ({}, {"1": values}, {"0": values, "1": values}, {"0": values[:-4]}):
        with raises_line("truncated or damaged"):
            read(files.as_stream(pickle, storages))
    nested = files.pickled(b"](" + b"]" * 5000 + b"a" * 4999 + b"e")
    with raises_line("truncated or damaged"):
        read(files.STREAM_START + pickle + nested)
    with raises_line("truncated or damaged"):
        read(good.replace(struct.pack("<q", 12), struct.pack("<q", 1 << 40)))
    with raises_line("written on a big-endian machine"):
        read(good.replace(b"little_endian\x88", b"little_endian\x89"))


# === Without PyTorch ===


def test_a_pth_is_converted_and_starts_a_training_without_pytorch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    write_pth("small.pth", weights(golden(SMALL)))
    arguments = (f"--model={SMALL}", "--checkpoint=small.pth", f"--output={tmp_path}/ours")
    assert script("convert_checkpoint.py")("--source=sssegmentation", *arguments) == 0
    config = zoo.get_config(SMALL)
    model = build_segmentor(config)
    initialize(model, config, "small.pth")
    for found, expected in zip(
        model.get_weights(), load_checkpoint("ours").model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    kernel = model.get_layer("aspp0_conv").get_weights()[0]
    drawn = weights(golden(SMALL))["aspp_conv.0.weight"]
    np.testing.assert_array_equal(kernel, drawn.transpose(2, 3, 1, 0))
    back = ("--checkpoint_dir=ours", "--output=back.pth")
    assert script("convert_checkpoint.py")("--to=sssegmentation", *back) == 0
    stored = read_pth("back.pth")
    assert {name: stored[name].tobytes() for name in weights(golden(SMALL))} == {
        name: value.tobytes() for name, value in weights(golden(SMALL)).items()
    }


# === MobileNetV2 older than torchvision's ===


def old_name(name: str) -> str:
    """The name of torchvision's tensor in a network whose blocks are flat sequences."""
    parts = name.split(".")
    if parts[2:3] != ["conv"]:
        return name
    first = ["0.0", "0.1", "1", "2"]
    others = ["0.0", "0.1", "1.0", "1.1", "2", "3"]
    layers, flat = (first, [0, 1, 3, 4]) if parts[1] == "1" else (others, [0, 1, 3, 4, 6, 7])
    layer = ".".join(parts[3:-1])
    return ".".join([*parts[:3], str(flat[layers.index(layer)]), parts[-1]])


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar"])
def test_imagenet_files_of_mobilenet_v2_before_torchvision(suffix):
    config = ModelConfig(head="fcn", head_channels=8, depth_multiplier=0.35)
    keras.utils.set_random_seed(0)
    model = build_segmentor(config)
    state = {
        slot.source: np.abs(noise(*slot.source_shape, seed=number))
        for number, slot in enumerate(slots(model, torchvision.imagenet_rules(config)))
    }
    others = {"features.18.0.weight": noise(1280, 112, 1, 1), "classifier.weight": noise(10, 1280)}
    write_pth(f"new{suffix}", state | others)
    write_pth(f"old{suffix}", {old_name(name): value for name, value in (state | others).items()})
    found = {}
    for age in ("new", "old"):
        model = build_segmentor(config)
        initialize(model, config, f"{age}{suffix}")
        found[age] = {v.path: np.array(v) for v in model.weights if "fcn" not in v.path}
    changed = [
        name
        for name, value in found["new"].items()
        if not np.array_equal(value, found["old"][name])
    ]
    assert len(found["new"]) > 250 and all("logits" in n or "auxiliary" in n for n in changed)
    swapped = {old_name(name): value for name, value in state.items()}
    one, other = "features.12.conv.6.weight", "features.13.conv.6.weight"
    swapped[one], swapped[other] = swapped[other], swapped[one]
    write_pth("swapped.pth", swapped)
    initialize(model, config, "swapped.pth")
    assert not np.array_equal(
        model.get_layer("block12_project_conv").get_weights()[0],
        next(v for n, v in found["old"].items() if "block12_project_conv" in n),
    )


def test_an_old_mobilenet_v2_for_another_backbone_is_named():
    config = ModelConfig(head="fcn", head_channels=8, depth_multiplier=0.35)
    names = [
        slot.source for slot in slots(build_segmentor(config), torchvision.imagenet_rules(config))
    ]
    names += ["features.18.0.weight", "classifier.weight"]
    write_pth("old.pth", {old_name(name): np.ones(1, np.float32) for name in names})
    other = config.replace(backbone="mobilenet_v3_small", depth_multiplier=1.0)
    with raises_line(
        "it seems to be a PyTorch classifier mobilenet_v2, older than torchvision's; give a model "
        "with its --model_variant"
    ):
        conversion.convert("torchvision", "old.pth", other)
