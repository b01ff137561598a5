"""The tiny base model: reproducible, small, and worth training on."""

from pathlib import Path

import pytest
import torch

from worker.model.base_model import BaseModel
from worker.model.schedule import NoiseSchedule
from worker.model.tiny import main, write_tiny_base
from worker.model.vae import encode, load_vae
from worker.model.weights import load_unet

MIB = 1 << 20


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_same_seed_gives_the_same_bytes_whatever_the_threads(tiny_paths: dict[str, Path], tmp_path: Path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        write_tiny_base(tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path) == contents(tiny_paths["single_file"].parent)


def test_another_seed_gives_other_weights(tiny_paths: dict[str, Path], tmp_path: Path):
    paths = write_tiny_base(tmp_path, seed=1, layout="single_file")
    assert list(paths) == ["single_file"]
    assert paths["single_file"].read_bytes() != tiny_paths["single_file"].read_bytes()


def test_it_is_a_few_megabytes(tiny_paths: dict[str, Path]):
    assert tiny_paths["single_file"].stat().st_size < 6 * MIB


def test_the_command_writes_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["tiny", str(tmp_path), "--layout", "single_file"])
    main()
    assert capsys.readouterr().out == f"single_file: {tmp_path / 'tiny-sdxl.safetensors'}\n"
    assert [file.name for file in tmp_path.iterdir()] == ["tiny-sdxl.safetensors"]


def test_latents_of_smooth_pictures_spread_about_one(tiny_bases: dict[str, BaseModel]):
    vae = load_vae(tiny_bases["single_file"], "cpu", torch.float32)
    coarse = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    pixel_values = torch.nn.functional.interpolate(coarse, size=128, mode="bicubic").clamp(-2, 2) / 2
    latents = encode(vae, pixel_values)
    assert 0.5 < latents.std() < 2
    assert latents.mean().abs() < 0.5


def test_the_untrained_unet_is_a_passable_denoiser(tiny_bases: dict[str, BaseModel]):
    """Better than predicting nothing (loss 1), with all of the rest for LoRA to learn."""
    unet = load_unet(tiny_bases["single_file"], "cpu", torch.float32)
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(32, 4, 16, 16, generator=generator) for _ in range(2))
    timesteps = torch.arange(0, 1000, 32)[:32]
    noisy_latents = NoiseSchedule().add_noise(latents, noise, timesteps)
    text_embeds, pooled_text_embeds = torch.randn(32, 77, 32), torch.randn(32, 16)
    time_ids = torch.tensor([[128.0, 128, 0, 0, 128, 128]]).expand(32, -1)
    with torch.no_grad():
        prediction = unet(noisy_latents, timesteps, text_embeds, pooled_text_embeds, time_ids)
    assert 0.8 < prediction.std() < 1.25
    losses = (prediction - noise).square().mean(dim=(1, 2, 3))
    assert losses[-8:].mean() < 0.5 < 1 < losses[:8].mean()
