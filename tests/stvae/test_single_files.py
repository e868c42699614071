"""Checkpoints in one file, in the layout in which a model was published: the same moments as diffusers' folder."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.storage.checkpoint import local_checkpoint
from stvae import load_vae, read_card
from stvae.card import UnknownVAE
from stvae.checkpoints import single_file
from stvae.checkpoints.layouts import LAYOUTS as KNOWN_LAYOUTS
from stvae.checkpoints.published import PUBLISHED, Published
from stvae.checkpoints.single_file import SingleFile
from stvae.checkpoints.stored import open_weights
from stvae.weights import WeightsError, find_checkpoint
from tests.support import tiny_vaes
from tests.support.original_layouts import LAYOUTS, make, with_prefix


def pixels_for(folder: Path) -> Tensor:
    """A clip of the smallest interesting size that the VAE in a folder takes."""
    geometry = read_card(str(folder)).geometry
    frames = geometry.frames.start + geometry.frames.step
    side = max(2 * geometry.spatial_stride, 32)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, frames, side, side), dtype=torch.uint8, generator=generator)


@dataclasses.dataclass
class Tiny:
    """A tiny VAE as diffusers saves it, and what it computes."""

    folder: Path
    tensors: dict[str, Tensor]
    """Its tensors in the original layout."""
    pixels: Tensor
    moments: Tensor
    decoded: Tensor


@pytest.fixture(scope="module", params=LAYOUTS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("vae") / "folder"
    model, tensors = make(request.param)
    model.save_pretrained(folder)
    vae, pixels = load_vae(folder), pixels_for(folder)
    moments = vae.encode(pixels)
    decoded = vae.decode(moments[:, : vae.card.latent_channels], pixels.shape[2])
    return Tiny(folder, tensors, pixels, moments, decoded)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_in_the_original_layout_equals_the_folder(tiny: Tiny, suffix: str, tmp_path: Path) -> None:
    shutil.copy(tiny.folder / "config.json", tmp_path)
    path = tmp_path / f"vae.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": tiny.tensors, "step": 3}, path)
    else:
        others = ["model.diffusion_model.patchify_proj.weight", "audio_vae.encoder.conv_in.conv.weight"]
        whole = with_prefix(tiny.tensors, "vae.", others)
        save_file({name: tensor.contiguous().clone() for name, tensor in whole.items()}, path)
    vae, expected = load_vae(path), read_card(str(tiny.folder))
    assert dataclasses.replace(vae.card, sha256="") == dataclasses.replace(expected, sha256="")
    assert vae.card.sha256 != expected.sha256, "the identity is that of the bytes of the file"
    assert torch.equal(vae.encode(tiny.pixels), tiny.moments)
    decoded = vae.decode(tiny.moments[:, : expected.latent_channels], tiny.pixels.shape[2])
    difference = (decoded.int() - tiny.decoded.int()).abs().max()
    assert difference <= 1, "products round otherwise if the weights lie elsewhere in memory"


RENAMINGS = {
    # those of published models whose layout is not the first of their class
    "Wan 2.2 5B": "wan 2.2",
    "LTX-Video 0.9.0": "ltx 0.9.0",
    "LTX-Video 0.9.1": "ltx 0.9.1",
    "LTX-Video 0.9.5": "ltx 0.9.5",
}


def write_full_size(model: Published, path: Path, prefix: str = "", others: tuple[str, ...] = ()) -> None:
    """Write a file of the size of a published model whose values are a hole, which takes no space."""
    name = RENAMINGS.get(model.title) or next(name for name in LAYOUTS if LAYOUTS[name][0] == model.class_name)
    with torch.device("meta"):
        built = getattr(diffusers, model.class_name)(**model.config)
        tensors = LAYOUTS[name][2](dict(built.state_dict()))
    header: dict[str, Any] = {name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in others}
    position = 0
    for key, tensor in tensors.items():
        stop = position + 2 * tensor.numel()
        header[prefix + key] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + position)


@pytest.mark.parametrize("model", PUBLISHED, ids=lambda model: model.title)
def test_a_published_file_needs_no_configuration(model: Published, tmp_path: Path) -> None:
    """Files that differ only in how latents are scaled need their published name, else the message names both."""
    path = tmp_path / "weights.safetensors"
    write_full_size(model, path)
    if model.clue is None:
        config = SingleFile(path).config
        assert config["_class_name"] == model.class_name and {key: config[key] for key in model.config} == model.config
        return
    with pytest.raises(WeightsError, match="differ only in how latents are scaled") as raised:
        SingleFile(path)
    assert model.title in str(raised.value)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("sdxl_vae.safetensors", "SDXL"),
        ("vae-ft-mse-840000-ema-pruned.safetensors", "Stable Diffusion 1 and 2"),
        ("ae.safetensors", "Flux"),
        ("models--THUDM--CogVideoX-5b-SAT/snapshots/0/vae.safetensors", "CogVideoX 5B"),
    ],
)
def test_a_published_name_decides_between_equal_shapes(name: str, title: str, tmp_path: Path) -> None:
    model = next(model for model in PUBLISHED if model.title == title)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    write_full_size(model, tmp_path / name)
    config = SingleFile(tmp_path / name).config
    assert {key: config[key] for key in model.config} == model.config


@pytest.mark.parametrize(
    ("title", "prefix", "other"),
    [
        ("SDXL", "first_stage_model.", "conditioner.embedders.0.transformer.text_model.x"),
        ("Stable Diffusion 1 and 2", "first_stage_model.", "cond_stage_model.transformer.text_model.x"),
        ("Stable Diffusion 3", "first_stage_model.", "model.diffusion_model.joint_blocks.0.x"),
        ("Flux", "vae.", "model.diffusion_model.double_blocks.0.img_attn.x"),
    ],
)
def test_a_whole_model_tells_which_it_is(title: str, prefix: str, other: str, tmp_path: Path) -> None:
    model = next(model for model in PUBLISHED if model.title == title)
    write_full_size(model, tmp_path / "all.safetensors", prefix, (other,))
    config = SingleFile(tmp_path / "all.safetensors").config
    assert {key: config[key] for key in model.config} == model.config


@pytest.mark.parametrize("title", ["Wan 2.1", "LTX-Video 0.9.1", "LTX-Video 0.9.5", "LTX-2"])
def test_names_are_those_of_the_conversion_of_diffusers(title: str, tmp_path: Path) -> None:
    """Ours replaces it in places, because it takes some sizes as published."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    model = next(model for model in PUBLISHED if model.title == title)
    prefix = "vae." if "LTX" in title else ""
    write_full_size(model, tmp_path / "x.safetensors", prefix)
    file = SingleFile(tmp_path / "x.safetensors")
    stored = open_weights(tmp_path / "x.safetensors").infos
    original = {name: torch.empty(info.shape, device="meta") for name, info in stored.items()}
    convert = SINGLE_FILE_LOADABLE_CLASSES[model.class_name]["checkpoint_mapping_fn"]
    expected = convert(checkpoint=original, config=file.config)
    assert {name: info.shape for name, info in file.infos.items()} == {n: tuple(t.shape) for n, t in expected.items()}


def test_every_layout_is_tested() -> None:
    tested = {class_name for class_name, _, _ in LAYOUTS.values()}
    assert tested == {class_name for layout in KNOWN_LAYOUTS for class_name in layout.classes}
    assert {model.class_name for model in PUBLISHED} == tested - {"AutoencoderKLQwenImage"}


def save_whole(name: str, path: Path, metadata: dict[str, str] | None = None, prefix: str = "vae.") -> Any:
    """Write the file of a whole model with a tiny VAE in it, and return the VAE."""
    model, tensors = make(name)
    whole = with_prefix(tensors, prefix, ["model.diffusion_model.x"])
    save_file({key: tensor.contiguous().clone() for key, tensor in whole.items()}, path, metadata)
    return model


LTX_BLOCKS = {
    "ltx-2": {
        "encoder_blocks": [
            ["res_x", {"num_layers": 1}],
            ["compress_space_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 2}],
            ["compress_time_res", {"multiplier": 2}],
            ["res_x", 1],
            ["compress_all_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 1}],
            ["compress_all_res", {"multiplier": 1}],
            ["res_x", {"num_layers": 1}],
        ],
        "decoder_blocks": [
            ["res_x", {"num_layers": 1, "inject_noise": False}],
            ["compress_all", {"residual": True, "multiplier": 2}],
            ["res_x", {"num_layers": 1}],
            ["compress_all", {"residual": True, "multiplier": 2}],
            ["res_x", {"num_layers": 2}],
            ["compress_all", {"residual": True, "multiplier": 2}],
            ["res_x", {"num_layers": 1}],
        ],
    },
}


def ltx_metadata(**fields: Any) -> dict[str, str]:
    vae = {"_class_name": "CausalVideoAutoencoder", "latent_channels": 8, "causal_decoder": False} | fields
    return {"config": json.dumps({"transformer": {}, "vae": vae, "audio_vae": {}})}


def test_ltx_files_bring_their_configuration(tmp_path: Path) -> None:
    path = tmp_path / "ltx-2-tiny.safetensors"
    model = save_whole("ltx-2", path, ltx_metadata(**LTX_BLOCKS["ltx-2"]))
    model.save_pretrained(tmp_path / "folder")
    card, expected = read_card(str(path)), read_card(str(tmp_path / "folder"))
    assert dataclasses.replace(card, sha256="") == dataclasses.replace(expected, sha256="")
    pixels = pixels_for(tmp_path / "folder")
    assert torch.equal(load_vae(path).encode(pixels), load_vae(tmp_path / "folder").encode(pixels))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"config": "<html>"}, "configuration in the metadata of .* is a web page"),
        (ltx_metadata(encoder_blocks=[["res_x"]], decoder_blocks=[]), "metadata of .* cannot be used"),
        (ltx_metadata(encoder_blocks=[["res_x", 1]] * 65, decoder_blocks=[]), "65 blocks; expected at most"),
        (ltx_metadata(encoder_blocks=[["attn", 1]], decoder_blocks=[["res_x", 1]]), "put the config.json"),
        (None, "but not the sizes of LTX-Video 0.9.0, .*; put the config.json of its diffusers folder beside it"),
    ],
)
def test_wrong_metadata_are_one_sentence(metadata: dict[str, str] | None, message: str, tmp_path: Path) -> None:
    save_whole("ltx-2", tmp_path / "x.safetensors", metadata)
    with pytest.raises(WeightsError, match=message):
        read_card(str(tmp_path / "x.safetensors"))


def test_other_parts_of_a_whole_model_may_have_any_type(tmp_path: Path) -> None:
    model, tensors = make("wan 2.1")
    whole = with_prefix(tensors, "vae.")
    whole["model.diffusion_model.x"] = torch.zeros(4, 4).to(torch.float8_e4m3fn)
    save_file({name: tensor.contiguous() for name, tensor in whole.items()}, tmp_path / "all.safetensors")
    model.save_pretrained(tmp_path / "folder")
    shutil.copy(tmp_path / "folder" / "config.json", tmp_path)
    assert read_card(str(tmp_path / "all.safetensors")).class_name == "AutoencoderKLWan"
    whole["vae.conv1.bias"] = whole["vae.conv1.bias"].to(torch.float8_e4m3fn)
    save_file({name: tensor.contiguous() for name, tensor in whole.items()}, tmp_path / "all.safetensors")
    with pytest.raises(WeightsError, match=r"tensor 'vae.conv1.bias' in .* has the type F8_E4M3"):
        read_card(str(tmp_path / "all.safetensors"))


@pytest.mark.parametrize(
    ("name", "file", "class_name"),
    [
        ("wan 2.1", "Wan2.1_VAE.pth", "WanModel"),
        ("hunyuan video", "pytorch_model.pt", "AutoencoderKLCausal3D"),
        ("hunyuan video 1.5", "diffusion_pytorch_model.safetensors", "AutoencoderKLConv3D"),
    ],
)
def test_a_configuration_beside_a_file_that_is_not_of_diffusers_is_not_used(
    name: str, file: str, class_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repositories hold the configuration of the transformer, or of the model's own code, beside the VAE's file."""
    tiny = Published(title=f"tiny {name}", class_name=LAYOUTS[name][0], config=LAYOUTS[name][1])
    monkeypatch.setattr(single_file, "PUBLISHED", (tiny,))
    model, tensors = make(name)
    if file.endswith(".safetensors"):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / file)
    else:
        torch.save(tensors, tmp_path / file)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": class_name, "dim": 1536}))
    model.save_pretrained(tmp_path / "folder")
    card = read_card(str(tmp_path / file))
    assert dataclasses.replace(card, sha256="") == dataclasses.replace(read_card(str(tmp_path / "folder")), sha256="")
    if class_name == "WanModel":
        with pytest.raises(UnknownVAE, match=rf"has .* {class_name}.* give the file itself: '.*{file}'"):
            read_card(str(tmp_path))
    else:
        assert read_card(str(tmp_path)) == card


def test_files_of_old_versions_of_pytorch_are_read(tmp_path: Path) -> None:
    model, tensors = make("sdxl")
    model.save_pretrained(tmp_path)
    torch.save(tensors, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    pixels = pixels_for(tmp_path)
    assert torch.equal(load_vae(tmp_path / "old.ckpt").encode(pixels), load_vae(tmp_path).encode(pixels))


def test_the_weights_of_a_folder_may_be_given_as_a_file(tmp_path: Path) -> None:
    tiny_vaes.save("AutoencoderKL", tmp_path)
    card = read_card(str(tmp_path / "diffusion_pytorch_model.safetensors"))
    assert card == read_card(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"needs a config.json with the '_class_name' of a VAE beside it"):
        read_card(str(tmp_path / "diffusion_pytorch_model.safetensors"))


@pytest.mark.parametrize("parts", [1, 2])
def test_folders_with_bin_files_are_read(parts: int, tmp_path: Path) -> None:
    folder = tiny_vaes.save("AutoencoderKL", tmp_path / "vae")
    expected, pixels = load_vae(folder), pixels_for(folder)
    safetensors = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(safetensors)
    safetensors.unlink()
    names = sorted(tensors)
    files = [
        f"diffusion_pytorch_model-{part}.bin" if parts > 1 else "diffusion_pytorch_model.bin" for part in range(parts)
    ]
    for part, file in enumerate(files):
        torch.save({name: tensors[name] for name in names[part::parts]}, folder / file)
    if parts > 1:
        weight_map = {name: files[number % parts] for number, name in enumerate(names)}
        (folder / "diffusion_pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(load_vae(folder).encode(pixels), expected.encode(pixels))


@pytest.mark.parametrize("given", ["models--a--b", "models--a--b/snapshots/" + "0" * 40])
def test_models_in_the_cache_of_the_hub_are_read(given: str, tmp_path: Path) -> None:
    root = tmp_path / "models--a--b"
    snapshot = root / "snapshots" / ("0" * 40)
    made = tiny_vaes.save("AutoencoderKL", tmp_path / "made")
    (root / "blobs").mkdir(parents=True)
    (snapshot / "vae").mkdir(parents=True)
    for number, path in enumerate(sorted(made.iterdir())):
        shutil.copy(path, root / "blobs" / (f"{number}" * 8))
        (snapshot / "vae" / path.name).symlink_to(f"../../../blobs/{str(number) * 8}")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    assert read_card(str(tmp_path / given)) == read_card(str(made))
    file = snapshot / "vae" / "diffusion_pytorch_model.safetensors"
    assert read_card(str(file)) == read_card(str(made))
    (root / "refs" / "main").write_text("../../../made")
    with pytest.raises(WeightsError, match="does not name a commit"):
        read_card(str(root))
    (root / "refs" / "main").unlink()
    assert read_card(str(root)) == read_card(str(made))


@pytest.mark.parametrize(
    ("field", "value", "class_name"),
    [
        ("temperal_downsample", [True], "AutoencoderKLWan"),
        ("down_block_types", ["CogVideoXDownBlock3D"], "AutoencoderKLCogVideoX"),
        ("x", 1, "AutoencoderKL"),
    ],
)
def test_a_missing_class_name_is_a_sentence_that_says_what_to_add(
    field: str, value: Any, class_name: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({field: value}))
    with pytest.raises(UnknownVAE, match=rf"has no '_class_name'; add .* \"_class_name\": \"{class_name}\""):
        read_card(str(tmp_path))


def test_a_configuration_beside_a_file_that_lacks_the_class_is_named(tmp_path: Path) -> None:
    model, tensors = make("wan 2.1")
    torch.save(tensors, tmp_path / "vae.pth")
    model.save_config(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["_class_name"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        WeightsError, match=r"beside it has no '_class_name': .* add \"_class_name\": \"AutoencoderKLWan\""
    ):
        read_card(str(tmp_path / "vae.pth"))


def test_the_name_of_a_model_on_the_hub_is_told_from_a_path(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"no VAE at 'acme/vae': .*; for a model on the Hugging .* give 'hf://acme/vae'$"
    ):
        read_card("acme/vae")
    with pytest.raises(WeightsError, match=r"one of \['demo'\]$"):
        read_card(str(tmp_path / "vae"))


def test_a_configuration_without_latent_channels_is_one_sentence(tmp_path: Path) -> None:
    tiny_vaes.save("AutoencoderKL", tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    with pytest.raises(
        WeightsError, match=r"AutoencoderKLWan: it lacks the number of latent channels \(latent_channels,"
    ):
        read_card(str(tmp_path))


def test_files_behind_urls_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    model, tensors = make("flux")
    model.save_pretrained(tmp_path / "folder")
    (tmp_path / "files").mkdir()
    shutil.copy(tmp_path / "folder" / "config.json", tmp_path / "files")
    path = tmp_path / "files" / "ae.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    expected = read_card(str(path))
    assert read_card(f"file://{path}") == expected
    copy = local_checkpoint(f"file://{path}")
    assert read_card(copy) == expected and copy.endswith("/ae.safetensors") and copy != str(path)
    assert find_checkpoint(copy) == Path(copy)
