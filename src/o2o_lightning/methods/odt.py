"""Online Decision Transformer (Zheng et al. 2022, https://arxiv.org/abs/2202.05607), offline and online."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from o2o_lightning.methods.actor_critic import GOES_ON
from o2o_lightning.methods.dt import SequenceMethod, window
from o2o_lightning.methods.method import Batch, Draws, FloatArray, Learners, Loss, Moment, Noise, Normal, Source, Task
from o2o_lightning.nn.decision_transformer import OnlineDecisionTransformer, SequencePolicy, Window
from o2o_lightning.nn.optimizers import LAMB
from o2o_lightning.nn.targets import frozen_copy
from o2o_lightning.objectives.imitation import sequence_likelihood_loss, sequence_temperature_loss

DATA_LIMIT = 1.0 - 1e-6  # the data's actions are clipped to it: atanh(±1) is infinite


class ODT(SequenceMethod):
    """The likelihood of the data's actions, with an entropy held at −A.

    Args:
        lr, weight_decay: of LAMB.
        temperature: weight of the entropy at the beginning; temperature_lr: Adam's rate for its logarithm.
        padded_entropy: average the entropy over padding too, as the released code (D88).
    """

    name: ClassVar[str] = "odt"
    actor_kind: ClassVar[str | None] = OnlineDecisionTransformer.kind
    transformer: ClassVar[type[SequencePolicy]] = OnlineDecisionTransformer
    lr: float = 1e-4
    weight_decay: float = 5e-4
    acting_context: int = 5
    width: int = 512
    layers: int = 4
    heads: int = 4
    temperature: float = 0.1
    temperature_lr: float = 1e-4
    padded_entropy: bool = False

    def build(self, task: Task, source: Source | None = None) -> None:
        super().build(task, source)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(self.temperature)))

    def learners(self) -> Learners:
        return {**super().learners(), "temperature": (self.log_temperature, self.temperature_lr)}

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        # a group without decay takes Adam's step, which is what the temperature has
        decay = {"actor": self.weight_decay, "temperature": 0.0}
        return LAMB([{**group, "weight_decay": decay[group["name"]]} for group in groups])

    def noise(self, shape: tuple[int, ...]) -> Draws:
        return {"entropy": Normal(shape)}

    def step(self, batch: Batch, noise: Noise) -> Loss:
        policy = self.actor.distribution(window(batch))  # type: ignore[operator]
        log_prob = policy.log_prob(batch["action"], DATA_LIMIT)
        entropy = -policy.sample(noise["entropy"])[1]
        temperature, real = self.log_temperature.exp(), batch["real"]
        counted = torch.ones_like(real) if self.padded_entropy else real
        loss = sequence_likelihood_loss(log_prob, entropy, temperature.detach(), real, counted)
        target_entropy = -float(self.actor.spec.action_dim)
        temperature_loss = sequence_temperature_loss(self.log_temperature, entropy, counted, target_entropy)
        # the temperature's loss reaches nothing else, and nothing else the temperature: one backward
        return Loss(
            loss + temperature_loss,
            {
                "sequence_loss": loss,
                "log_prob": log_prob,
                "entropy": entropy,
                "temperature": temperature,
                "return_to_go": batch["return_to_go"],
            },
        )


class OnlineODT(ODT):
    """The same rule on the episodes that it plays, each relabelled by the returns that came of it (hindsight).

    Everything goes on: networks, temperature, the optimizer's moments and the warm-up of its rate. Acts by samples,
    asked for more than when it is evaluated.

    Args:
        wanted_return: raw return that it is asked for when it explores; the target and its size once more by default.
        updates_before: gradient updates that the rate's warm-up has behind it.
        context, acting_context, width, layers, heads, dropout, return_scale, target_return: the checkpoint's.
    """

    carries_moments: ClassVar[tuple[str, ...]] = GOES_ON
    needs_source: ClassVar[bool] = True
    wanted_return: float | None = None
    updates_before: int = 0

    def build(self, task: Task, source: Source | None = None) -> None:
        assert source is not None
        stored: Any = source  # whose build_actor is for policies without memory
        self.actor = stored.build_policy()
        self.offline_actor = frozen_copy(self.actor)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(self.temperature)))
        source.load_scalar(self.log_temperature, "log_temperature")
        self.context, self.return_scale = self.actor.spec.context, self.actor.spec.return_scale

    @property
    def wanted(self) -> float:
        """The raw return that it explores for."""
        target: float = self.actor.spec.target_return
        return target + abs(target) if self.wanted_return is None else self.wanted_return

    def rates(self, moment: Moment) -> dict[str, float]:
        return super().rates(moment._replace(update=moment.update + self.updates_before))

    @torch.no_grad()
    def sampled(self, window: Window, noise: Tensor) -> FloatArray:
        """The action ``[A]`` at the end of one ``window`` ``[1, T, …]``, made of standard normal ``noise`` ``[A]``."""
        device = self.log_temperature.device
        self.actor.eval()
        policy = self.actor.distribution(Window(*(part.to(device) for part in window)))  # type: ignore[operator]
        self.actor.train()
        action, _ = policy.sample(noise.to(device))
        return action[0, -1].cpu().numpy()  # type: ignore[no-any-return]

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"wanted_return": self.wanted}
