"""SPOT (Wu et al. 2022, https://arxiv.org/abs/2202.06239): TD3 pinned to where an auto-encoder has seen the data."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from o2o_lightning.errors import UserError
from o2o_lightning.methods.actor_critic import GOES_ON
from o2o_lightning.methods.method import Batch, Draws, Learners, Loss, Moment, Noise, Normal, Source, Task, Updates
from o2o_lightning.methods.td3 import TD3
from o2o_lightning.nn.vae import ActionVAE
from o2o_lightning.objectives.schedules import linear_decay
from o2o_lightning.objectives.td3 import normalized_policy_loss


class SPOT(TD3):
    """An auto-encoder learns what actions the data has; then it is frozen, and TD3 pays for leaving them (Eq. 8).

    Args:
        pin: λ of the negative evidence bound.
        pin_floor, pin_env_steps: online λ falls linearly towards 0 over so many steps, but to no less than this share.
        vae_updates: gradient updates of the auto-encoder alone; 0 takes that of the checkpoint.
        vae_lr, vae_hidden: its Adam's rate and its widths.
    """

    name: ClassVar[str] = "spot"
    carries_moments: ClassVar[tuple[str, ...]] = GOES_ON
    pin: float = 0.1
    pin_floor: float = 0.2
    pin_env_steps: int = 1_000_000
    vae_updates: int = 100_000
    vae_lr: float = 1e-3
    vae_hidden: Sequence[int] = (750, 750)

    def build(self, task: Task, source: Source | None = None) -> None:
        super().build(task, source)
        self.vae = ActionVAE(*task.sizes, self.vae_hidden)
        self.register_buffer("pin_now", torch.tensor(self.pin))
        if self.vae_updates >= task.total > 0:
            raise UserError(
                f"--model.vae_updates {self.vae_updates}: of {task.total} updates none is left for the policy. Pass "
                "fewer, or make more updates: steps.offline=N, --trainer.max_steps N."
            )
        if self.vae_updates:
            return
        if source is None or not source.has("vae"):
            raise UserError(
                "--model.vae_updates 0: SPOT needs the auto-encoder of its offline phase. Pass --model.init_from "
                "RUN_DIR/offline/checkpoints/last.ckpt of offline=spot."
            )
        source.load(self.vae, "vae").requires_grad_(False)

    def learners(self) -> Learners:
        learners = super().learners()
        return {**learners, "vae": (self.vae, self.vae_lr)} if self.vae_updates else learners

    def noise(self, shape: tuple[int, ...]) -> Draws:
        return {**super().noise(shape), "latent": Normal((*shape[:-1], 2 * shape[-1]))}

    def schedules(self, moment: Moment) -> dict[str, float]:
        return {"pin_now": self.pin * max(linear_decay(moment.env_steps, self.pin_env_steps), self.pin_floor)}

    def update(self, moment: Moment) -> Updates:
        if moment.update < self.vae_updates:
            yield self.vae_step
        else:
            yield from super().update(moment)

    def vae_step(self, batch: Batch, noise: Noise) -> Loss:
        loss = self.vae(batch["observation"], batch["action"], noise["latent"]).mean()
        return Loss(loss, {"vae_loss": loss})

    def policy_step(self, batch: Batch, noise: Noise) -> Loss:
        observation = batch["observation"]
        action = self.actor(observation)
        q = self.critic.first(observation, action, frozen=True)
        misfit = self.vae(observation, action, noise["latent"], frozen=True)
        loss = normalized_policy_loss(q, self.mean_magnitude(q)) + self.pin_now * misfit.mean()
        return Loss(loss, {"actor_loss": loss, "q_policy": q, "misfit": misfit})
