"""The phase in which pictures and captions become latents and embeddings, from the cache where it has them.

Several ranks share the work, and one cache.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from worker.data.batches import Batches, Example, Regularisation, View
from worker.data.buckets import Cut
from worker.data.cache import Cache
from worker.data.dataset import Dataset
from worker.data.encoding import (
    TextEmbedding,
    caption_path,
    encode_captions,
    encode_pictures,
    latents_path,
    tokenize_captions,
)
from worker.data.examples import caption_orders, make_examples, make_held_out, shots_of, view_of
from worker.loop.config import TrainerConfig
from worker.loop.outside import Emit, Stopped
from worker.loop.ranks import Ranks
from worker.loop.shared_encoding import Work, fill_cache
from worker.loop.validation import Validation
from worker.model.base_model import BaseModel

_ANSWER_LOOK_S = 0.02

Captions = dict[str, TextEmbedding]  # every caption and prompt, and the empty one


@dataclass(frozen=True)
class Encoded:
    """What is trained with from here on."""

    batches: Batches
    captions: Captions
    validation: Validation | None


class Encoding:
    """The phase, for one training.

    Args:
        config: with everything filled in that it left to the base model and to the device.
        base: the base model.
        device: where encoders run.
        dtype: of what they make.
        emit: takes the name and the fields of each fact.
        stop_requested: asked between pictures.
        ranks: who encodes along.
    """

    def __init__(
        self,
        config: TrainerConfig,
        base: BaseModel,
        device: torch.device,
        dtype: torch.dtype,
        emit: Emit,
        stop_requested: Callable[[], bool],
        ranks: Ranks,
    ) -> None:
        self.config = config
        self.base = base
        self.device = device
        self.dtype = dtype
        self.emit = emit
        self.stop_requested = stop_requested
        self.ranks = ranks
        self.cache = Cache(Path(config.cache))

    def run(self, dataset: Dataset, cuts: Sequence[Cut]) -> Encoded:
        """Encode what `dataset` has, `cuts` one for each picture: those trained, then those held out.

        VAE and text encoders are gone from the device when this returns; encoders to be trained come later.

        Raises:
            DatasetInvalid: a picture cannot be read.
            NanLoss: latents are not finite.
            Stopped: between two pictures or captions.
        """
        cache, base, options = self.cache, self.base, self.config.dataset
        orders = caption_orders(dataset, options)
        of_pictures = (*(text for each in orders for text in each), *(picture.caption for picture in dataset.held_out))
        texts = list(dict.fromkeys(["", *of_pictures, *self.config.samples.prompts]))
        shots = shots_of(dataset, cuts, options.flip)
        cached = [] if self.config.lora.text_encoders else texts  # trained encoders say another thing in every step
        self._ask_for(
            [
                *(caption_path(text, cache, base, self.dtype, options.caption_tokens) for text in cached),
                *(latents_path(shot, cache, base, self.dtype) for shot in shots),
            ]
        )
        total = len(cached) + len(shots)
        if self.ranks.size > 1:
            work = Work(cache, base, cached, options.caption_tokens, shots, self.device, self.dtype)
            if fill_cache(work, self.ranks, lambda n: self._tell(n, total), self.stop_requested):
                raise Stopped
        captions: Captions = {}
        if self.config.lora.text_encoders:
            embeddings = tokenize_captions(texts, options.caption_tokens)
        else:
            embeddings = encode_captions(texts, cache, base, self.device, self.dtype, options.caption_tokens)
        for text, embedding in zip(texts, embeddings, strict=True):
            captions[text] = embedding
            if cached:
                self._encoded(len(captions), total)
        views: list[View] = []
        for shot, latents in zip(shots, encode_pictures(shots, cache, base, self.device, self.dtype), strict=True):
            views.append(view_of(shot, latents, options))
            self._encoded(len(cached) + len(views), total)
        examples = make_examples(dataset, views, orders, captions)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what the encoders left, for the U-Net
        validation = self._validation(dataset, make_held_out(dataset, views, captions))
        return Encoded(self._batches(dataset, examples, captions[""]), captions, validation)

    def _batches(self, dataset: Dataset, examples: list[Example], empty: TextEmbedding) -> Batches:
        """Of all ranks together: each takes its part of every batch."""
        options, count = self.config.dataset, sum(not picture.regularisation for picture in dataset.pictures)
        regularisation = options.regularisation and Regularisation(examples[count:], options.regularisation.weight)
        return Batches(
            examples[:count],
            empty,
            self.config.batch_size * self.ranks.size,
            self.config.train.seed,
            options.caption_dropout,
            regularisation,
        )

    def _validation(self, dataset: Dataset, examples: list[Example]) -> Validation | None:
        digests = [picture.sha256 for picture in dataset.held_out]
        options = self.config.validation
        return options and Validation(examples, digests, options.every_n_steps, self.config.train.loss)

    def _ask_for(self, paths: Sequence[Path]) -> None:
        """Tell which files the cache lacks, and wait until somebody has brought what there is of them elsewhere.

        The first rank does so, and the others wait for it: what it says is heard, and it says nothing if all is there.
        """
        if self.config.cache_answer is None:
            return
        missing = [path.relative_to(self.cache.folder).as_posix() for path in paths if not path.exists()]
        if missing and self.ranks.first:
            self.emit("missing", files=missing)
            while not (Path(self.config.cache_answer).exists() or self.stop_requested()):
                time.sleep(_ANSWER_LOOK_S)
        if self.ranks.size > 1:
            self.ranks.meet("cache", meanwhile=lambda: None)
        elif self.stop_requested():
            raise Stopped

    def _encoded(self, done: int, total: int) -> None:
        if self.ranks.size == 1:  # several have told of it before, and have heard a stop together
            self._tell(done, total)
            if self.stop_requested():
                raise Stopped

    def _tell(self, done: int, total: int) -> None:
        self.emit("encoded", done=done, total=total, anew=self.cache.made)
