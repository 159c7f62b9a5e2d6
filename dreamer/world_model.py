"""The world model: encoder, RSSM, decoder, reward and continue heads, and the loss that trains them together."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from . import distributions as dist
from .config import ModelConfig
from .networks import Decoder, Encoder, Head
from .rssm import RSSM, State
from .spaces import ActionSpec, ObservationSpec

if TYPE_CHECKING:
    from .replay import Batch


class WorldModel(nn.Module):
    """Args: widths, what is seen, what can be done, gamma of the continue targets, precision of the products."""

    bins: Tensor

    def __init__(
        self,
        config: ModelConfig,
        observation: ObservationSpec,
        action: ActionSpec,
        discount: float,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.discount = discount
        latents = config.stoch * config.classes
        self.feature_width = config.deter + latents
        self.encoder = Encoder(observation, config.units, config.depth, dtype)
        self.rssm = RSSM(config, action.width, self.encoder.width, dtype)
        self.decoder = Decoder(observation, config.deter, latents, config.units, config.depth)
        self.reward = Head(self.feature_width, config.units, layers=1, outputs=dist.BINS, outscale=0.0)
        self.continuation = Head(self.feature_width, config.units, layers=1, outputs=1, outscale=1.0)
        self.register_buffer("bins", dist.twohot_bins(), persistent=False)

    def observe(self, batch: "Batch", uniform: Tensor) -> tuple[State, Tensor]:
        """Posterior states (B, T, ...) of a batch and their logits (B, T, S, K); `uniform` is (B, T, S)."""
        tokens = self.encoder(batch.observation)
        return self.rssm.observe(batch.start, tokens, batch.prev_action, batch.is_first, uniform)

    def losses(
        self, feature: Tensor, deter: Tensor, logits: Tensor, batch: "Batch"
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses (B, T) of posterior features (B, T, F), each before its mean and scale, and metrics.

        The continue target is `(1 - terminal) * gamma`: the head predicts the discount, so a real end is 0 and a
        time limit is an ordinary step.
        """
        losses = {
            f"decoder/{key}": loss
            for key, loss in self.decoder.losses(self.decoder(feature), batch.observation).items()
        }
        losses["reward"] = dist.twohot_loss(self.reward(feature), batch.reward, self.bins)
        target = (~batch.is_terminal).float() * self.discount
        losses["continuation"] = dist.bernoulli_loss(self.continuation(feature).squeeze(-1), target)
        losses["dynamics"], losses["representation"], metrics = self.rssm.kl(deter, logits)
        return losses, metrics

    def outcome(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Expected reward (...) and predicted continue (...), gamma included, of features (..., F)."""
        reward = dist.twohot_mean(self.reward(feature), self.bins)
        return reward, torch.sigmoid(self.continuation(feature).squeeze(-1))
