"""Whether a world model knows its own rows by heart: what it expects of them, held against what it expects of new ones.

Each row is replayed hundreds of times at the published train ratios, and a wide model learns the few rows of a young
run rather than the world that they come from.
"""

import torch

from .. import distributions as dist
from ..replay import Replay
from .dream import Dream

SEQUENCES = 64


@torch.no_grad()
def learned_kl(dream: Dream, rows: Replay) -> float:
    """KL of the posterior with the prior, nats a row, over sequences of rows that the model has learned from.

    As in training: a sequence begins with what was remembered there. Rows that begin an episode do not count, since
    nothing can be expected of them; NaN where there is no whole sequence.
    """
    agent, batch_size = dream.agent, dream.agent.config.replay.batch
    if not rows.starts:
        return float("nan")
    found = []
    for _ in range(-(-SEQUENCES // batch_size)):
        batch = rows.sample(batch_size)[0].to(agent.device)
        uniform = dream.uniform(*batch.reward.shape, agent.config.model.stoch)
        posterior, logits = agent.world_model.observe(batch, uniform)
        kl = dist.categorical_kl(dist.mixed_probs(logits), dream.prior(posterior)).sum(-1)
        found.append(kl[~batch.is_first])
    return float(torch.cat(found).mean())
