"""The DataModule of a sequence model that learns online, from whole episodes."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from o2o_lightning.data.interacting import InteractingData
from o2o_lightning.data.online import Act
from o2o_lightning.data.trajectories import TrajectoryData
from o2o_lightning.errors import UserError, at_least
from o2o_lightning.replay.episodes import EpisodeBuffer
from o2o_lightning.replay.interaction import Interaction
from o2o_lightning.replay.windows import Windows


@dataclass(eq=False, repr=False)
class EpisodeData(TrajectoryData, InteractingData):
    """Plays an episode, makes ``updates`` gradient updates on windows of the episodes that it keeps, and so on.

    Args:
        trajectories: episodes that are kept: the dataset's best ones at first, then one of them less, the worst first,
            for each that is played.
        updates: gradient updates after each episode.
    """

    trajectories: int = 1000
    updates: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        self._windows: Windows | None = None
        at_least("--data.trajectories", self.trajectories, 1)
        at_least("--data.updates", self.updates, 0)

    def rings(self) -> list[Any]:
        if self.ranks.count > 1:
            raise UserError(
                "--trainer.devices: the Online Decision Transformer learns from episodes that have ended, and those of "
                "several processes end at different steps. Pass --trainer.devices 1."
            )
        self.kept = EpisodeBuffer(self.needed("it begins with the dataset's episodes"), self.trajectories)
        return [self.kept]

    @property
    def interaction(self) -> Interaction:
        """The training environment."""
        return self.interactions[0]

    @property
    def steps_before_updates(self) -> int:
        return 0

    @property
    def windows(self) -> Windows:
        """What training draws from, until the next episode has ended."""
        if self._windows is None or self._windows.store is not self.kept.store:
            method = self.module.method
            self._windows = Windows(self.kept.store, method.context, method.return_scale)
        return self._windows

    def step(self, explore: Act) -> None:
        """One environment step; ``explore`` maps a raw observation ``[S]`` to an action ``[A]``."""
        self.interaction.step(explore)

    def updates_due(self, env_steps: int) -> int:
        """How many updates come now: ``updates``, if an episode has just ended."""
        return self.updates if self.interaction.episode_length == 0 else 0

    def numbers(self, shape: Any = None) -> Tensor:
        return super().numbers((1, self.batch_size))

    def local_state(self) -> dict[str, Any]:
        return super().local_state() | {"interaction": self.interaction.state()}

    def load_local_state(self, state: dict[str, Any]) -> None:
        super().load_local_state(state)
        self.interaction.load_state(state["interaction"])
