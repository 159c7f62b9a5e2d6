"""The optimiser: adaptive gradient clipping, then LaProp, with a linear warm-up."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .config import OptimizerConfig


class LaProp(torch.optim.Optimizer):
    """Clips each tensor by its own size, scales by the gradients' RMS, then adds momentum.

    For update n = 0, 1, ... of a parameter p with gradient g, the norms being those of the whole tensor
    (AGC: Brock et al. 2021; LaProp: Ziyin et al. 2020):

        g  = g / max(1, ||g|| / (clip max(min_norm, ||p||)))
        v  = beta2 v + (1 - beta2) g^2
        m  = beta1 m + (1 - beta1) g / (sqrt(v / (1 - beta2^(n+1))) + epsilon)
        p -= learning_rate min(1, n / warmup) m / (1 - beta1^(n+1))

    So the first update moves nothing. The count of updates is a tensor on the parameters' device, so that a captured
    update goes on counting.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], config: OptimizerConfig):
        super().__init__(parameters, {})
        self.config = config
        params = self._parameters()
        self.updates = torch.zeros((), dtype=torch.int64, device=params[0].device)
        for p in params:
            self.state[p] = {"scale": torch.zeros_like(p), "momentum": torch.zeros_like(p)}

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _gradients(self) -> list[Tensor]:
        params = self._parameters()
        grads = [p.grad for p in params if p.grad is not None]
        assert len(grads) == len(params), "a parameter has no gradient: it belongs to no loss"
        return grads

    def is_sound(self, loss: Tensor) -> Tensor:
        """Whether a loss () and all gradients are finite: (), bool."""
        return torch.isfinite(torch.stack([loss.detach(), *torch._foreach_norm(self._gradients())])).all()

    @torch.no_grad()
    def step(self, sound: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """One update of every parameter. If it is not sound, nothing changes, nor does the count.

        Args:
            sound: (), bool on the parameters' device, so that a GPU need not be waited for. See `is_sound`.

        Returns:
            Metrics: the global norms before clipping, the learning rate, and 1 if the update was skipped.
        """
        config = self.config
        params = self._parameters()
        zero = torch.zeros((), device=sound.device)
        grads = [torch.where(sound, grad, zero) for grad in self._gradients()]
        scales = [self.state[p]["scale"] for p in params]
        momenta = [self.state[p]["momentum"] for p in params]

        grad_norms = torch.stack(torch._foreach_norm(grads))
        param_norms = torch.stack(torch._foreach_norm(params))
        limits = config.clip * param_norms.clamp(min=config.min_norm)
        grads = list(torch._foreach_div(grads, list((grad_norms / limits).clamp(min=1).unbind())))

        count = self.updates.float()
        debias1, debias2 = _weight_sum(config.beta1, count + 1), _weight_sum(config.beta2, count + 1)
        rate = torch.where(sound, config.learning_rate * (count / config.warmup).clamp(max=1), 0.0)

        torch._foreach_mul_(scales, torch.where(sound, config.beta2, 1.0))
        torch._foreach_addcmul_(scales, grads, grads, 1 - config.beta2)
        denominators = torch._foreach_div(scales, debias2)
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, config.epsilon)
        torch._foreach_div_(grads, denominators)
        torch._foreach_mul_(momenta, torch.where(sound, config.beta1, 1.0))
        torch._foreach_add_(momenta, grads, alpha=1 - config.beta1)
        torch._foreach_sub_(params, torch._foreach_mul(momenta, rate / debias1))
        self.updates += sound
        return {
            "gradient_norm": grad_norms.norm(),
            "parameter_norm": param_norms.norm(),
            "learning_rate": rate,
            "skipped": 1 - sound.float(),
        }

    def state_dict(self) -> dict[str, object]:
        """Tensors only: the count and both moments, in the order of the parameters."""
        states = [self.state[p] for p in self._parameters()]
        return {
            "updates": self.updates,
            "scale": [state["scale"] for state in states],
            "momentum": [state["momentum"] for state in states],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        self.updates.copy_(state["updates"])
        for name in ("scale", "momentum"):
            own = [self.state[p][name] for p in self._parameters()]
            assert len(own) == len(state[name]), "the optimiser state belongs to another model"
            for target, source in zip(own, state[name]):
                target.copy_(source)


def _weight_sum(beta: float, count: Tensor) -> Tensor:
    """Of so many terms of a moving average: 1 - beta^n, without the digits that 1 - 0.999 loses in float32."""
    return -torch.expm1(count * (math.log(beta) if beta else -math.inf))
