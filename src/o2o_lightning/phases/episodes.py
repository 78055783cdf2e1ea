"""The online phase of a policy that acts on its episode so far."""

from typing import cast

import numpy as np
import torch

from o2o_lightning.data.episodes import EpisodeData
from o2o_lightning.methods.odt import OnlineODT
from o2o_lightning.nn.decision_transformer import Window
from o2o_lightning.phases.online import FloatArray, Online


class OnlineEpisodes(Online):
    """As :class:`~o2o_lightning.phases.online.Online`, an episode at a time."""

    def explore(self, observation: FloatArray) -> FloatArray:
        data, method = cast(EpisodeData, self.data), cast(OnlineODT, self.method)
        spec, kept, step = method.actor.spec, data.kept, data.interaction.episode_length
        present = torch.zeros(kept.layout.width)
        rows = [*kept.under_way[max(step + 1 - spec.acting_context, 0) :], present]
        columns = kept.layout.columns(torch.stack(rows))
        columns["observation"][-1] = torch.from_numpy(observation)
        # what is still wanted, and behind each step its reward more
        to_go = columns["reward"].flip(0).cumsum(0).flip(0) + (method.wanted - data.interaction.episode_return)
        window = Window(
            to_go[None] * spec.return_scale,
            torch.from_numpy(self.normalizer.numpy(columns["observation"].numpy()))[None],
            columns["action"][None],
            torch.arange(step + 1 - len(rows), step + 1)[None],
        )
        noise = data.generator.standard_normal(spec.action_dim, dtype=np.float32)
        return method.sampled(window, torch.from_numpy(noise))

    @property
    def planned_updates(self) -> int:
        data = cast(EpisodeData, self.data)
        return data.updates * (data.budget // max(data.longest(), 1))
