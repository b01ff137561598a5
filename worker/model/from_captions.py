"""The U-Net with both text encoders before it: what is trained when the encoders have an adapter of their own.

Shapes: b batch, n chunks of 75 tokens, h and w of the latents.
"""

from torch import Tensor, nn

from worker.model.text_encoders import TextEncoders


class FromCaptions(nn.Module):
    """Predicts as the U-Net does, but takes token ids where it takes embeddings, and encodes them anew in every call.

    So whatever predicts with a U-Net, a step or a sampler, does so with the encoders as they are at that moment, and
    the gradient reaches their adapters.
    """

    def __init__(self, unet: nn.Module, encoders: TextEncoders) -> None:
        super().__init__()
        self.unet = unet
        self.encoders = encoders

    def forward(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        token_ids: Tensor,
        nothing: Tensor,
        time_ids: Tensor,
    ) -> Tensor:
        """Return the prediction [b, 4, h, w].

        Args:
            noisy_latents, timesteps, time_ids: as the U-Net takes them.
            token_ids: [b, 2, 75 n + 2], of both tokenizers.
            nothing: [b, 0], in the place of the pooled embeddings, which are made here.
        """
        text_embeds, pooled_text_embeds = self.encoders.embed(token_ids)
        return self.unet(noisy_latents, timesteps, text_embeds, pooled_text_embeds, time_ids)
