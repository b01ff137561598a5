"""Makes the drawing model from nothing: pictures, VAE, U-Net, one file of weights, figures and a sheet.

    python -m benchmarks.drawing.recipe OUT            minutes on one GPU; --device cpu is for trying the code out

OUT gets drawing-sdxl.safetensors, figures.json and sheet.png.
"""

import argparse
import json
import platform
import random
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import Tensor

from benchmarks.drawing.artist import Artist, sheet
from benchmarks.drawing.checker import judge, rates
from benchmarks.drawing.model import CONFIGS, NAME, random_text_encoders
from benchmarks.drawing.pictures import COLOURS, KNOWN_SHAPES, NEW_SHAPES, Scene, all_scenes, render, scribble
from benchmarks.drawing.train_unet import BATCH, Captioned, train_unet
from benchmarks.drawing.train_vae import encode_all, reconstruct, train_vae
from worker.model.base_writer import published_states, write_single_file
from worker.model.text_encoders import TextEncoders
from worker.seeds import generator

SEED = 0
PICTURES, SCRIBBLES, PICTURES_A_CHUNK = 65_536, 8_192, 256
VAE_STEPS, UNET_STEPS = 2_900, 5_500
HELD_OUT = 12  # one caption in so many is never shown, to see whether colours and shapes combine freely
RATED = 252  # known captions drawn for the figures
VAE_RATE_MIN = 0.85  # of pictures that are still right after the VAE; a worse one is not worth a U-Net


def log(line: str) -> None:
    print(line, flush=True)


def split_scenes() -> tuple[list[Scene], list[Scene]]:
    """Return the scenes to train on, and those held out. The same in every run."""
    scenes = all_scenes()
    random.Random(SEED).shuffle(scenes)
    held_out = len(scenes) // HELD_OUT
    return scenes[held_out:], scenes[:held_out]


def render_all(scenes: list[Scene], count: int, scribbles: int) -> tuple[Tensor, Tensor]:
    """Render `count` pictures, the scenes in turn, then `scribbles`: [n, 3, 128, 128] uint8, and scene numbers [count].

    Every chunk has a seed of its own, so that the pictures do not depend on the number of processes.
    """
    numbers = torch.arange(count) % len(scenes)  # [count]
    chunks = [numbers[start : start + PICTURES_A_CHUNK].tolist() for start in range(0, count, PICTURES_A_CHUNK)]
    with ProcessPoolExecutor() as pool:
        rendered = list(pool.map(partial(_render_chunk, scenes), range(len(chunks)), chunks))
        scribbled = list(pool.map(_scribble_chunk, range(scribbles // PICTURES_A_CHUNK)))
    stacked = np.concatenate([*rendered, *scribbled])  # [n, 128, 128, 3]
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous(), numbers


def _render_chunk(scenes: list[Scene], chunk: int, numbers: list[int]) -> np.ndarray:
    source = random.Random(f"scenes {SEED} {chunk}")
    return np.stack([np.asarray(render(scenes[number], source)) for number in numbers])


def _scribble_chunk(chunk: int) -> np.ndarray:
    source = random.Random(f"scribbles {SEED} {chunk}")
    return np.stack([np.asarray(scribble(source)) for _ in range(PICTURES_A_CHUNK)])


@torch.no_grad()
def caption_tables(encoders: TextEncoders, scenes: list[Scene], device: torch.device) -> tuple[Tensor, Tensor]:
    """Embed all captions, the empty one, and zeros in the end: [k + 2, 77, t] and [k + 2, p]."""
    captions = [*(scene.caption for scene in scenes), ""]
    parts = [encoders.encode(captions[start : start + 256]) for start in range(0, len(captions), 256)]
    text, pooled = (torch.cat([*tensors, torch.zeros_like(tensors[0][:1])]) for tensors in zip(*parts, strict=True))
    return text.to(device), pooled.to(device)


def rates_after(vae: AutoencoderKL, pictures: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Encode and decode pictures [n, 3, H, W] of `scenes`: how many are still right? What no U-Net can exceed."""
    images = [Image.fromarray(each) for each in reconstruct(vae, pictures).permute(0, 2, 3, 1).numpy()]
    return rates(judge(image, scene) for image, scene in zip(images, scenes, strict=True))


def rates_of(artist: Artist, trained: list[Scene], held_out: list[Scene], count: int) -> dict[str, dict[str, float]]:
    """Draw `count` of the captions trained on, as many held out, and the star: how many are right?"""
    chosen = [trained[i] for i in torch.randperm(len(trained), generator=generator("rated", SEED))[:count].tolist()]
    known = list(zip(chosen, artist.judge(chosen), strict=True))
    return {
        "known": rates(verdict for _, verdict in known),
        "known, one in the middle": rates(v for scene, v in known if scene.count == 1 and not scene.place),
        "known, one in a corner": rates(v for scene, v in known if scene.place),
        "known, two to four": rates(v for scene, v in known if scene.count > 1),
        "held out": rates(artist.judge(held_out[:count])),
        "never shown": rates(artist.judge([s for s in all_scenes(NEW_SHAPES) if s.count == 1 and not s.place][:count])),
    }


def rows_to_show() -> list[list[str]]:
    """Captions of the sheet: every known shape in every colour, places and counts, and the shape it was never shown."""
    colours = list(COLOURS)
    pairs = list(zip(colours, [*colours[3:], *colours[:3]], strict=True))
    rows = [[Scene(shape, *pair).caption for pair in pairs] for shape in KNOWN_SHAPES]
    places = [Scene("circle", *pair, place="bottom left").caption for pair in pairs]
    counts = [Scene("cross", *pair, count=3).caption for pair in pairs]
    return [*rows, places, counts, [Scene("star", *pair).caption for pair in pairs]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the drawing model.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--scribbles", type=int, default=SCRIBBLES)
    parser.add_argument("--vae-steps", type=int, default=VAE_STEPS)
    parser.add_argument("--unet-steps", type=int, default=UNET_STEPS)
    parser.add_argument("--vae-rate-min", type=float, default=VAE_RATE_MIN)
    parser.add_argument("--rated", type=int, default=RATED, help="known captions drawn for the figures")
    parser.add_argument("--batch", type=int, default=BATCH, help="of the U-Net")
    arguments = parser.parse_args()
    out, device = arguments.out, torch.device(arguments.device)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    started = time.perf_counter()

    trained, held_out = split_scenes()
    pictures, numbers = render_all(trained, arguments.pictures, arguments.scribbles)
    log(f"Rendered {len(pictures)} pictures of {len(trained)} captions in {time.perf_counter() - started:.0f} s.")
    pictures, numbers = pictures.to(device), numbers.to(device)
    vae = train_vae(pictures, arguments.vae_steps, log)
    kept = rates_after(vae, pictures[: arguments.rated], [trained[n] for n in numbers[: arguments.rated].tolist()])
    log(f"After the VAE {kept['right']:.1%} of pictures are right: {kept}")
    if kept["right"] < arguments.vae_rate_min:
        raise SystemExit(f"The VAE loses too much: at least {arguments.vae_rate_min:.0%} should be right.")
    latents = encode_all(vae, pictures[: len(numbers)])
    del pictures

    encoders = random_text_encoders(SEED)
    unet = train_unet(
        Captioned(latents, numbers, *caption_tables(encoders, trained, device)),
        arguments.unet_steps,
        log,
        arguments.batch,
    )
    file = out / f"{NAME}.safetensors"
    parts = {"unet": unet, "vae": vae, "text_encoder": encoders.encoder_1, "text_encoder_2": encoders.encoder_2}
    write_single_file(file, CONFIGS, published_states(parts))
    log(f"Wrote {file.name}, {file.stat().st_size / 1e6:.1f} MB, after {time.perf_counter() - started:.0f} s.")

    artist = Artist(file, device=device)
    figures = {
        "rates": {"pictures after the VAE": kept} | rates_of(artist, trained, held_out, arguments.rated),
        "bytes": file.stat().st_size,
        "seconds": round(time.perf_counter() - started),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "steps": {"vae": arguments.vae_steps, "unet": arguments.unet_steps, "unet batch": arguments.batch},
    }
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    log(json.dumps(figures, indent=2))
    rows = rows_to_show()
    sheet([artist.draw(row, seed=1) for row in rows]).save(out / "sheet.png")


if __name__ == "__main__":
    main()
