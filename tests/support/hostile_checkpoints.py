"""Checkpoints that are broken or hostile, and a process that tries each of them with little memory and time.

``python -m tests.support.hostile_checkpoints FOLDER NAME...`` prints a line of JSON for each: exit code, output, time.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import socket
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.golden import TINY

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
PTH = "vae.pth"
"""File in the original layout that the base ``pth`` has."""
MAX_S = 60
MAX_BYTES = 1 << 30
"""Memory beyond what the libraries take."""
HOSTILE_TEXT = "\x1b[2J\nfinished: forged\u202e"

Change = Callable[[Path], None]


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the JSON in a file."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def config(**fields: Any) -> Change:
    return lambda folder: edit(folder / CONFIG, lambda values: values.update(fields))


def without(*fields: str) -> Change:
    return lambda folder: edit(folder / CONFIG, lambda values: [values.pop(field) for field in fields])


def config_text(text: str | bytes) -> Change:
    return lambda folder: (folder / CONFIG).write_bytes(text.encode() if isinstance(text, str) else text) and None


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def weights_bytes(change: Callable[[bytes], bytes]) -> Change:
    return lambda folder: weights_of(folder).write_bytes(change(weights_of(folder).read_bytes())) and None


def header(change: Callable[[dict[str, Any]], Any], *, payload: Callable[[bytes], bytes] = bytes) -> Change:
    """Change the header of the weights."""

    def change_bytes(data: bytes) -> bytes:
        (size,) = struct.unpack("<Q", data[:8])
        values = json.loads(data[8 : 8 + size])
        changed = change(values)
        text = changed if isinstance(changed, bytes) else json.dumps(values).encode()
        return struct.pack("<Q", len(text)) + text + payload(data[8 + size :])

    return weights_bytes(change_bytes)


def tensors(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Change the tensors of the weights; diffusers' library writes them again."""

    def apply(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        values = load_file(weights_of(folder))
        change(values)
        save_file({name: value.contiguous() for name, value in values.items()}, weights_of(folder))

    return apply


def index(weight_map: Any, *, keep: bool = True) -> Change:
    def apply(folder: Path) -> None:
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        if not keep:
            weights_of(folder).unlink()

    return apply


def replaced(name: str, make: Callable[[Path], Any]) -> Change:
    def apply(folder: Path) -> None:
        path = folder / name if (folder / name).exists() or name.endswith(".json") else weights_of(folder)
        path.unlink(missing_ok=True)
        make(path)

    return apply


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket may not be long
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def sparse(size_bytes: int) -> Change:
    return lambda folder: os.truncate(weights_of(folder), size_bytes)


def huge_but_consistent(folder: Path) -> None:
    """Weights whose header describes a tensor of 1 TB, in a file with holes."""
    entry = {"w": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}
    text = json.dumps(entry).encode()
    weights_of(folder).write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(weights_of(folder), 8 + len(text) + (1 << 40))


def first(values: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = values[next(name for name in sorted(values) if name != "__metadata__")]
    return entry


def set_first(**fields: Any) -> Change:
    return header(lambda values: first(values).update(fields))


def split_in_two(folder: Path) -> None:
    """Put the same tensors in two files of an index."""
    data = weights_of(folder).read_bytes()
    weights_of(folder).unlink()
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).write_bytes(data)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))


def two_weights(folder: Path) -> None:
    weights_of(folder).rename(folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")


def convert(dtype: str) -> Change:
    def change(values: dict[str, Any]) -> None:
        import torch

        for name in values:
            values[name] = values[name].to(getattr(torch, dtype))

    return tensors(change)


def fill_first(value: float) -> Change:
    return tensors(lambda values: values[min(name for name in values if "encoder" in name)].view(-1)[:1].fill_(value))


def pth(make: Callable[[Path], Any]) -> Change:
    """Write another PyTorch file in place of the sound one."""

    def apply(folder: Path) -> None:
        (folder / PTH).unlink()
        make(folder / PTH)

    return apply


def saved(make: Callable[[dict[str, Any]], Any], **options: Any) -> Change:
    """Save what ``make`` returns of the sound tensors."""

    def apply(folder: Path) -> None:
        import torch

        values = make(torch.load(folder / PTH, weights_only=True))
        torch.save(values, folder / PTH, **options)

    return apply


def pth_bytes(change: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / PTH).write_bytes(change((folder / PTH).read_bytes())) and None


def zipped(change: Callable[[dict[str, bytes]], Any], compression: int = zipfile.ZIP_STORED) -> Change:
    """Write the archive again with other parts."""

    def apply(folder: Path) -> None:
        with zipfile.ZipFile(folder / PTH) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        change(parts)
        with zipfile.ZipFile(folder / PTH, "w", compression) as archive:
            for name, data in parts.items():
                archive.writestr(name, data)

    return apply


class RunsCode:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def in_itself(values: dict[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    whole["state_dict"] = whole
    return whole


def expanded(values: dict[str, Any]) -> dict[str, Any]:
    """A tensor of a terabyte, of which one value is stored."""
    name = min(values)
    return values | {name: values[name].flatten()[:1].expand(1 << 38)}


def huge_directory(data: bytes) -> bytes:
    """Claim a directory of 4 GB at the end of the archive."""
    at = data.rfind(b"PK\x05\x06")
    return data[: at + 12] + b"\xfe\xff\xff\xff" + data[at + 16 :]


def renamed_tensors(rename: Callable[[str], str]) -> Change:
    return saved(lambda values: {rename(name): value for name, value in values.items()})


def without_config(folder: Path) -> None:
    (folder / CONFIG).unlink()


NESTED = '{"a":' * 3000 + "1" + "}" * 3000
ENCODER = "encoder.conv_in.weight"
OLD = {"_use_new_zipfile_serialization": False}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 334643276\n"
DIGITS = "9" * 5000

CASES: dict[str, tuple[str, Change, str]] = {
    # name: (base checkpoint, change, part of the sentence)
    "config lfs": ("kl", config_text(LFS), "Git LFS pointer"),
    "config empty": ("kl", config_text(""), "is empty"),
    "config html": ("kl", config_text("<!DOCTYPE html><html>Sign in</html>"), "is a web page"),
    "config bom": ("kl", config_text(b"\xef\xbb\xbf{}"), "byte order mark"),
    "config utf16": ("kl", config_text("{}".encode("utf-16")), "byte order mark"),
    "config latin1": ("kl", config_text(b'{"_class_name": "caf\xe9"}'), "not UTF-8"),
    "config cut": ("kl", lambda f: config_text((f / CONFIG).read_bytes()[:100])(f), "is not JSON"),
    "config python": ("kl", config_text("{'_class_name': 'AutoencoderKL'}"), "is not JSON"),
    "config list": ("kl", config_text("[1]"), "holds a list"),
    "config null": ("kl", config_text("null"), "holds a NoneType"),
    "config deep": ("kl", config_text(NESTED), "nested too deeply"),
    "config quite deep": ("kl", config_text('{"a":' * 40 + "1" + "}" * 40), "nested too deeply"),
    "config deep lists": ("kl", config_text("[" * 100_000), "nested too deeply"),
    "config twice": ("kl", config_text('{"_class_name": "AutoencoderKL", "_class_name": "x"}'), "given twice"),
    "config nan": ("kl", config_text('{"_class_name": "AutoencoderKL", "scaling_factor": NaN}'), "no JSON number"),
    "config 1e400": ("kl", config_text('{"_class_name": "AutoencoderKL", "scaling_factor": 1e400}'), "too large"),
    "config digits": ("kl", config_text(f'{{"_class_name": "AutoencoderKL", "x": {DIGITS}}}'), "too many digits"),
    "config large": ("kl", config_text('{"a": "' + "x" * (5 << 20) + '"}'), "bytes; expected JSON of at most"),
    "config no class": ("kl", without("_class_name"), "has no '_class_name'; add"),
    "config class list": ("kl", config(_class_name=["Autoencoder"]), "has the class"),
    "config class of others": ("kl", config(_class_name="AutoencoderMixin"), "AutoencoderMixin, which has no row"),
    "config class unknown": (
        "kl",
        config(_class_name="AutoencoderKLOfTomorrow"),
        "AutoencoderKLOfTomorrow, which has no row .* --unlisted-vae",
    ),
    "config class escape": ("kl", config(_class_name=f"Autoencoder{HOSTILE_TEXT}"), "has the class"),
    "config lacks sizes": ("kl", without("block_out_channels"), "it lacks 'block_out_channels'"),
    "config layers": ("kl", config(layers_per_block=10**7), "no VAE has sizes above"),
    "config layers below the limit": ("kl", config(layers_per_block=10**6), "describes a model with more than"),
    "config layers somewhat many": ("kl", config(layers_per_block=300), "describes a model with more than"),
    "config channels": ("kl", config(block_out_channels=[10**6] * 4), "do not fit"),
    "config channels huge": ("kl", config(block_out_channels=[2**40] * 4), "no VAE has sizes above"),
    "config channels text": ("kl", config(block_out_channels="aaaa"), "cannot be built"),
    "config channels negative": ("kl", config(block_out_channels=[-8] * 4), "cannot be built"),
    "config levels": ("kl", config(block_out_channels=[8] * 100_000), "halves its input"),
    "config groups": ("kl", config(norm_num_groups=0), "cannot be built"),
    "config blocks": ("kl", config(down_block_types=["os.system"] * 4), "cannot be built"),
    "config latent channels": ("kl", config(latent_channels=10**6), "number of latent channels"),
    "config latent channels text": ("kl", config(latent_channels="four"), "cannot be used for"),
    "config latent channels negative": ("kl", config(latent_channels=-4), "cannot be used for"),
    "scaling zero": ("kl", config(scaling_factor=0), "finite number, not 0"),
    "scaling tiny": ("kl", config(scaling_factor=1e-300), "finite number, not 0"),
    "scaling text": ("kl", config(scaling_factor="nan"), "finite number, not 0"),
    "scaling huge": ("kl", config(scaling_factor=1e300), "finite number, not 0"),
    "scaling list": ("kl", config(scaling_factor=[1.0]), "cannot be used for"),
    "shift text": ("kl", config(shift_factor="inf"), "finite number"),
    "means too few": ("wan", config(latents_mean=[0.0] * 3), "do not fit"),
    "means text": ("wan", config(latents_mean=["x"] * 16), "finite number"),
    "means nested": ("wan", config(latents_mean=[[0.0]] * 16), "finite number"),
    "std zero": ("wan", config(latents_std=[0.0] * 16), "cannot be used for"),
    "std number": ("wan", config(latents_std=1.0), "cannot be used for"),
    "std tiny": ("wan", config(latents_std=[1e-320] * 16), "finite number, not 0"),
    "wan strides": ("wan", config(temperal_downsample=[2**19] * 3), "halves its input"),
    "wan patch": ("wan", config(patch_size=2**19), "spatial stride"),
    "open lacks 2d": ("open", without("vae_2d"), "it lacks 'vae_2d'"),
    "open 2d list": ("open", config(vae_2d=[1]), "cannot be used for"),
    "open chunk": ("open", config(micro_frame_size=0), "frames per chunk"),
    "open chunk text": ("open", config(micro_frame_size="17"), "frames per chunk"),
    "open batch": (
        "open",
        lambda f: edit(f / CONFIG, lambda v: v["vae_2d"].update(micro_batch_size=-1)),
        "micro_batch",
    ),
    "open scale": ("open", tensors(lambda v: v["scale"].fill_(0)), "cannot be used for"),
    "open shift": ("open", tensors(lambda v: v["shift"].fill_(float("nan"))), "finite number"),
    "open no shift": ("open", tensors(lambda v: v.pop("shift")), "no tensor named shift"),
    "open shift type": ("open", tensors(lambda v: v.update(shift=v["shift"].long())), "of type I64"),
    "weights lfs": ("kl", weights_bytes(lambda data: LFS), "Git LFS pointer"),
    "weights empty": ("kl", weights_bytes(lambda data: b"\0" * 0), "has 0 bytes"),
    "weights html": ("kl", weights_bytes(lambda data: b"<html>not found</html>"), "not a safetensors file"),
    "weights half": ("kl", weights_bytes(lambda data: data[: len(data) // 2]), "ends early"),
    "weights cut in header": ("kl", weights_bytes(lambda data: data[:500]), "ends within its header"),
    "weights longer": ("kl", weights_bytes(lambda data: data + b"\0"), "but its header describes"),
    "weights pickle": ("kl", weights_bytes(lambda data: b"\x80\x02}q\x00." * 10), "not a safetensors file"),
    "header 2^40": ("kl", weights_bytes(lambda data: struct.pack("<Q", 1 << 40) + data[8:]), "1099511627776 bytes"),
    "header 2^63": ("kl", weights_bytes(lambda data: struct.pack("<Q", (1 << 64) - 1) + data[8:]), "not a safetensors"),
    "header no json": ("kl", header(lambda values: b"{" * 50), "is not JSON"),
    "header deep": ("kl", header(lambda values: NESTED.encode()), "nested too deeply"),
    "header twice": ("kl", header(lambda values: b'{"a":{},"a":{}}'), "given twice"),
    "header entry": ("kl", header(lambda values: values.update(x=1)), "lacks dtype"),
    "header type": ("kl", set_first(dtype="F8_E4M3"), "has the type F8_E4M3"),
    "header type list": ("kl", set_first(dtype=["F32"]), "has the type"),
    "header shape": ("kl", set_first(shape=[1 << 59, 1 << 59]), "needs"),
    "header shape 10^30": ("kl", set_first(shape=[10**30]), "not valid"),
    "header shape negative": ("kl", set_first(shape=[-1, -1]), "not valid"),
    "header shape text": ("kl", set_first(shape="8"), "not valid"),
    "header many dimensions": ("kl", set_first(shape=[1] * 100_000), "not valid"),
    "header offsets": ("kl", set_first(data_offsets=[1 << 50, (1 << 50) + 32]), "header gives it|gaps"),
    "header offsets reversed": ("kl", set_first(data_offsets=[32, 0]), "header gives it"),
    "header overlap": ("kl", header(lambda v: v.update(zz=dict(first(v)))), "overlap"),
    "weights sparse": ("kl", sparse(1 << 34), "but its header describes"),
    "weights sparse 1 TB": ("kl", huge_but_consistent, "weights of at most"),
    "weights other types": ("kl", convert("int32"), "of another type"),
    "weights missing": ("kl", tensors(lambda v: v.pop(min(v))), "1 missing"),
    "weights unexpected": ("kl", tensors(lambda v: v.update({HOSTILE_TEXT: v[min(v)].clone()})), "1 unexpected"),
    "weights shape": ("kl", tensors(lambda v: v.update({min(v): v[min(v)][:1]})), "1 of another shape"),
    "weights nan": ("kl", fill_first(float("nan")), "has NaN or infinite values"),
    "weights infinite": ("open", fill_first(float("inf")), "has NaN or infinite values"),
    "no weights": ("kl", lambda f: weights_of(f).unlink(), "no \\*.safetensors and no \\*.bin"),
    "two weights": ("kl", two_weights, "several checkpoints"),
    "index without files": ("kl", index({"x": "a-00001-of-00002.safetensors"}, keep=False), "missing \\(1 of 1\\)"),
    "index outside": ("kl", index({"x": "../../other.safetensors"}), "of its own folder"),
    "index absolute": ("kl", index({"x": "/etc/passwd.safetensors"}), "of its own folder"),
    "index other file": ("kl", index({"x": "config.json"}), "of its own folder"),
    "index number": ("kl", index({"x": 1}), "of its own folder"),
    "index list": ("kl", index(["a"]), "has no 'weight_map'"),
    "index empty": ("kl", index({}), "has no 'weight_map'"),
    "index html": ("kl", replaced(INDEX, lambda p: p.write_text("<html>")), "is a web page"),
    "index lfs": ("kl", replaced(INDEX, lambda p: p.write_bytes(LFS)), "Git LFS pointer"),
    "index same tensors": ("kl", split_in_two, "keep one of them"),
    "config pipe": ("kl", replaced(CONFIG, os.mkfifo), "is a pipe"),
    "config folder": ("kl", replaced(CONFIG, os.mkdir), "is a folder"),
    "config socket": ("kl", replaced(CONFIG, make_socket), "is a socket"),
    "config device": ("kl", replaced(CONFIG, lambda p: p.symlink_to("/dev/zero")), "is a device"),
    "config loop": ("kl", replaced(CONFIG, lambda p: p.symlink_to(p.name)), "cannot be opened"),
    "config gone": ("kl", replaced(CONFIG, lambda p: None), "expected a folder with config.json"),
    "weights pipe": ("kl", replaced(WEIGHTS, os.mkfifo), "is a pipe"),
    "weights folder": ("kl", replaced(WEIGHTS, os.mkdir), "is a folder"),
    "weights socket": ("kl", replaced(WEIGHTS, make_socket), "is a socket"),
    "weights device": ("kl", replaced(WEIGHTS, lambda p: p.symlink_to("/dev/zero")), "is a device"),
    "weights dangling": ("kl", replaced(WEIGHTS, lambda p: p.symlink_to("gone")), "cannot be opened"),
    "index pipe": ("kl", replaced(INDEX, os.mkfifo), "is a pipe"),
    "pth lfs": ("pth", pth_bytes(lambda data: LFS), "Git LFS pointer"),
    "pth empty": ("pth", pth_bytes(lambda data: b"\0" * 0), "neither a PyTorch file nor a safetensors file"),
    "pth html": ("pth", pth_bytes(lambda data: b"<html>not found</html>"), "neither a PyTorch file nor"),
    "pth half": ("pth", pth_bytes(lambda data: data[: len(data) // 2]), "damaged or incomplete"),
    "pth cut at its end": ("pth", pth_bytes(lambda data: data[:-10]), "damaged or incomplete"),
    "pth without its start": ("pth", pth_bytes(lambda data: b"PK\x03\x04" + data[400:]), "cannot be read|damaged"),
    "pth directory": ("pth", pth_bytes(huge_directory), "directory of 4294967294 bytes"),
    "pth code": ("pth", saved(lambda v: v | {"x": RunsCode(os.system, "touch /tmp/ran")}), "needs 'posix.system'"),
    "pth eval": ("pth", saved(lambda v: RunsCode(eval, "1")), "needs '__builtin__.eval'"),
    "pth bytes of 1 TB": (
        "pth",
        saved(lambda v: v | {"x": RunsCode(bytearray, 1 << 40)}),
        "needs '__builtin__.bytearray'",
    ),
    "pth object": ("pth", saved(lambda v: v | {"args": Path("x")}), "needs 'pathlib"),
    "pth protocol 4": ("pth", saved(lambda v: v, pickle_protocol=4), "pickle of another program"),
    "pth compressed": ("pth", zipped(lambda parts: None, zipfile.ZIP_DEFLATED), "compressed parts"),
    "pth bomb": (
        "pth",
        zipped(lambda parts: parts.update({"x/data/0": b"\0" * (1 << 28)}), zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "pth program": ("pth", zipped(lambda parts: parts.update({"vae/constants.pkl": b""})), "TorchScript program"),
    "pth other zip": (
        "pth",
        zipped(lambda p: [p.pop(n) for n in list(p) if n.endswith("data.pkl")]),
        "without tensors",
    ),
    "pth lacks a tensor": ("pth", zipped(lambda p: p.pop(next(n for n in p if "/data/" in n))), "cannot be read"),
    "pth pickle cut": (
        "pth",
        zipped(lambda p: p.update({n: p[n][:50] for n in p if n.endswith("data.pkl")})),
        "is damaged",
    ),
    "pth pickle large": (
        "pth",
        zipped(lambda p: p.update({n: p[n] + b"." * (9 << 20) for n in p if n.endswith("data.pkl")})),
        "has a pickle of",
    ),
    "pth old cut": (
        "pth",
        lambda f: (saved(dict, **OLD)(f), pth_bytes(lambda data: data[:-1000])(f)),
        "cannot be read",
    ),
    "pth old code": ("pth", saved(lambda v: RunsCode(os.system, "touch /tmp/ran"), **OLD), "needs 'posix.system'"),
    "pth pickle of a program": ("pth", pth_bytes(lambda data: b"\x80\x02}q\x00." * 10), "cannot be read|is damaged"),
    "pth in itself": ("pth", saved(in_itself), "holds no tensors"),
    "pth list": ("pth", saved(lambda v: list(v.values())), "holds a list"),
    "pth no tensors": ("pth", saved(lambda v: {"epoch": 3}), "holds no tensors"),
    "pth expanded": ("pth", saved(expanded), "claims more values than the file has"),
    "pth transformer": ("pth", renamed_tensors(lambda name: f"blocks.0.attn.{name}"), "holds no VAE in a known layout"),
    "pth lora": ("pth", renamed_tensors(lambda name: f"{name}.lora_A.weight"), "is a LoRA"),
    "pth without configuration": ("pth", without_config, "but not the sizes of"),
    "pth other sizes": ("pth", config(block_out_channels=[16] * 4), "of another shape"),
    "pth fewer levels": ("pth", config(block_out_channels=[8] * 3), "cannot be built"),
    "pth lacks blocks": ("pth", without("block_out_channels"), "cannot be converted: it lacks 'block_out_channels'"),
    "pth nan": ("pth", saved(lambda v: v | {ENCODER: v[ENCODER] * float("nan")}), "has NaN or infinite values"),
    "pth integers": ("pth", saved(lambda v: {name: value.int() for name, value in v.items()}), "of another type"),
    "pth missing": ("pth", saved(lambda v: {name: v[name] for name in v if "conv_out" not in name}), "4 missing"),
    "pth pipe": ("pth", pth(os.mkfifo), "is a pipe"),
    "pth device": ("pth", pth(lambda p: p.symlink_to("/dev/zero")), "is a device"),
    "pth dangling": ("pth", pth(lambda p: p.symlink_to("gone")), "cannot be opened"),
}


def make_bases(folder: Path) -> None:
    """Make the sound checkpoints that the cases change."""
    import torch

    from tests.support import original_layouts
    from tests.support.tiny_vaes import save

    save("AutoencoderKL", folder / "kl")
    save("AutoencoderKLWan", folder / "wan")
    shutil.copytree(TINY, folder / "open")
    model, tensors = original_layouts.make("sdxl")
    model.save_pretrained(folder / "pth")
    weights_of(folder / "pth").unlink()
    torch.save(tensors, folder / "pth" / PTH)


def build(name: str, folder: Path) -> Path:
    """Make the checkpoint of a case below a folder with the bases."""
    base, change, _ = CASES[name]
    target = folder / name.replace(" ", "-").replace("^", "")
    shutil.copytree(folder / base, target)
    change(target)
    return target / PTH if base == "pth" else target


def attempt(vae: Path, output: Path) -> dict[str, Any]:
    """Encode with a checkpoint as a user would; the exit code, what was printed and the time that it took."""
    from jobs import encode_dataset

    started_s, printed = time.monotonic(), io.StringIO()
    arguments = ["--local", "--source", str(output.parent / "pictures"), "--output", str(output), "--vae", str(vae)]
    signal.alarm(MAX_S)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = encode_dataset.main([*arguments, "--buckets", "32x32x1", "--cpus", "1"])
    signal.alarm(0)
    return {"code": code, "text": printed.getvalue(), "seconds": time.monotonic() - started_s}


def main(folder: Path, names: list[str]) -> None:
    """Try cases one after the other."""
    import diffusers  # so that its size does not count
    import torch

    from tests.support.clips_maker import make_image
    from tests.support.painted import painted_decoders

    torch.set_num_threads(1)
    _ = diffusers.AutoencoderKL, diffusers.AutoencoderKLWan
    make_bases(folder)
    (folder / "pictures").mkdir()
    make_image(folder / "pictures" / "a.png", size=(32, 32))
    for base in ("kl", f"pth/{PTH}"):
        print(json.dumps({"name": f"sound {base}"} | attempt(folder / base, folder / f"out {base[:2]}")), flush=True)
    vaes = {name: build(name, folder) for name in names}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_BYTES, used + MAX_BYTES))
    with painted_decoders():  # real ones would take most of the time, and no case gets to a video
        for name, vae in vaes.items():
            print(json.dumps({"name": name} | attempt(vae, folder / f"out {name}")), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
