"""Cloning: a policy of any family becomes one of the family that the online algorithm needs (Eq. 52)."""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from o2o_lightning.methods.bc import Family, Imitation
from o2o_lightning.methods.method import Batch, Draws, Learners, Loss, Noise, Normal, Source, Task
from o2o_lightning.nn.actor import StochasticActor
from o2o_lightning.objectives.imitation import imitation_loss

Sampled = Callable[[Tensor, Tensor], Tensor | None]  # observations [B, S] and standard normal noise to actions [B, A]
CRITICS = ("critic", "target_critic")


class Clone(Imitation):
    """Imitates a policy on a dataset's states.

    Learns: the student. Frozen: the teacher, and its critics, which are only handed on.

    Args:
        family: family of the student.
        lr: Adam's rate.
        mode_weight: weight of the mean square distance of the modes, added to Eq. 52. Likelihood alone leaves the mode,
            which the alignment anchors to, two to three times as far from the teacher's; 0 for Eq. 52 as printed.
        labels: actions to imitate of a stochastic teacher: ``sample`` as it acts, its ``mode``, or ``auto``: samples,
            but for a squashed student of a clipped Gaussian, where samples at ±1 lie at infinity before tanh. A
            deterministic student imitates the mode.
    """

    name: ClassVar[str] = "clone"
    labels_from: ClassVar[str] = "teacher_action"
    family: Family = "squashed_gaussian"
    lr: float = 3e-4
    mode_weight: float = 100.0
    labels: Literal["auto", "sample", "mode"] = "auto"

    def build(self, task: Task, source: Source | None = None) -> None:
        super().build(task, source)
        self.sampled: Sampled | None = None
        if source is None:
            return
        for name in CRITICS:  # handed on: direct fine-tuning goes on with them
            if source.has(name):
                self.add_module(name, source.build_critic(name).requires_grad_(False))
        value = source.build_value()
        if value is not None:
            self.value = value.requires_grad_(False)

    def teach(self, sampled: Sampled, clipped: bool) -> None:
        """The teacher's own samples, ``clipped`` to ±1 or not; without them the student imitates the teacher's mode."""
        at_infinity = clipped and self.family == "squashed_gaussian"
        if self.labels == "sample" or (self.labels == "auto" and not at_infinity):
            self.sampled = sampled

    def learners(self) -> Learners:
        return self.fitted(self.lr)

    def noise(self, shape: tuple[int, ...]) -> Draws:
        return {"label": Normal(shape), **super().noise(shape)} if isinstance(self.actor, StochasticActor) else {}

    def density_step(self, batch: Batch, noise: Noise) -> Loss:
        observation, teacher_mode = batch["observation"], batch[self.labels_from]
        with torch.no_grad():
            action = self.label_at(observation, teacher_mode, noise["label"])
        loss, mode = self.likelihood(observation, action, noise["entropy"])
        mode_loss = imitation_loss(mode, teacher_mode)
        named = {"clone_loss": loss.metrics["imitation_loss"], "mode_loss": mode_loss}
        rest = {name: loss.metrics[name] for name in ("log_prob", "entropy", "temperature")}
        return Loss(loss.value + self.mode_weight * mode_loss, named | rest)

    def label_at(self, observation: Tensor, mode: Tensor, noise: Tensor) -> Tensor:
        """The actions ``[B, A]`` to imitate, where the teacher's ``mode`` is known."""
        sampled = None if self.sampled is None else self.sampled(observation, noise)
        return mode if sampled is None else sampled
