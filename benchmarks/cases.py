"""Each step of each algorithm twice: the package's phase without a Trainer, and the textbook's learner.

Sizes are the paper's for Hopper: S = 11, A = 3, batch 256; SAC's and CQL's networks 3×256, the others' 2×256, critics
with LayerNorm but offline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import textbook
import torch
from o2o_lightning.agents.iql import IQLAgent
from o2o_lightning.agents.ppo import PPOAgent
from o2o_lightning.agents.sac import SACAgent
from o2o_lightning.agents.td3 import TD3Agent
from tensordict import TensorDict, TensorDictBase

from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.data.stream import OfflineStream
from o2o_lightning.nn.actor import DeterministicActor
from o2o_lightning.nn.critics import Critics, ValueNet
from o2o_lightning.nn.gaussian import GaussianActor
from o2o_lightning.nn.squashed_gaussian import SquashedGaussianActor
from o2o_lightning.nn.targets import frozen_copy
from o2o_lightning.phases import (
    CQL,
    IQL,
    TD3BC,
    AlignSAC,
    AlignTD3,
    OnlinePPO,
    OnlineSAC,
    OnlineTD3,
    ReevaluatePPO,
    ReevaluateSAC,
    ReevaluateTD3,
)

S, A, BATCH, CHUNK = 11, 3, 256, 16
DATASET = "embedded:hopper-medium"
WIDE, NARROW = [256, 256, 256], [256, 256]
Update = Callable[[], Any]


@dataclass
class Case:
    """A step: ``ours(compiled)`` and ``theirs()`` return functions that make one update, data included.

    ``period`` updates make one round of the step (two where the policy is updated at every second).
    """

    name: str
    ours: Callable[[bool], Update]
    theirs: Callable[[], Update]
    period: int = 1


class Bare:
    """Updates of a phase without Lightning: what a loop written by hand would do with the same step."""

    def __init__(self, phase: Any, batches: Iterator[TensorDictBase]) -> None:
        self.phase, self.batches = phase, batches
        optimizer = phase.configure_optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        self.optimizer = optimizer

    def __call__(self) -> None:
        phase, optimizer = self.phase, self.optimizer
        batch = next(self.batches)
        phase._multiplier_moved = False  # each update is an environment step's first
        for loss in phase.update(batch):
            optimizer.zero_grad(set_to_none=True)
            loss.value.backward()
            optimizer.step()
        phase.updates += 1


def offline_data(batch_size: int = BATCH) -> OfflineData:
    """The embedded Hopper set."""
    data = OfflineData(DATASET, batch_size=batch_size)
    data.setup("fit")
    data.normalizer = data.fit_normalizer()
    return data


def online_data(filled: int = 20_000) -> OnlineData:
    """With a buffer as the online phase has it after ``filled`` environment steps."""
    data = OnlineData(dataset=DATASET)
    data.setup("fit")
    data.normalizer = data.fit_normalizer()
    assert data.store is not None
    data.buffer.extend(data.store.gather(torch.arange(filled)))
    return data


def chunked(data: OfflineData) -> Iterator[TensorDictBase]:
    """The batches of the offline phases, drawn and gathered a chunk at a time."""
    assert data.store is not None
    cpu = torch.device("cpu")
    stream = OfflineStream(
        data.store, lambda batch: data.prepare(batch, cpu), lambda: 0, 10**9, data.batch_size, CHUNK, (), data.rows
    )
    for chunk in stream:
        yield from chunk


def live(data: OnlineData) -> Iterator[TensorDictBase]:
    """The batches of the online phases, half online and half offline."""
    cpu = torch.device("cpu")
    while True:
        yield data.transition_batch(cpu)


def columns(data: OfflineData) -> dict[str, torch.Tensor]:
    """The dataset as the textbook's replay holds it: usable transitions, normalised before training."""
    assert data.store is not None
    rows = data.store.td_rows if data.store.td_rows is not None else torch.arange(len(data.store))
    batch = data.prepare(data.store.gather(rows), torch.device("cpu"))
    successor = batch["next"]
    named = {"s": batch["observation"], "a": batch["action"], "r": batch["reward"]}
    return {**named, "s2": successor["observation"], "d": successor["terminated"]}


# ---- the package's phases ----------------------------------------------------------------------------------------


def ready(phase: Any, agent: Any, compiled: bool) -> Any:
    """``phase`` with ``agent``, as its ``setup`` would leave it."""
    phase.agent = agent
    if hasattr(phase, "reference_settings"):
        phase.reference = frozen_copy(agent.actor)
    phase.updates = 1 if hasattr(phase, "policy_delay") else 0
    phase.compiles = compiled
    return phase


def sac_agent(norm: bool) -> SACAgent:
    """SAC's and CQL's networks."""
    return SACAgent(SquashedGaussianActor(S, A, WIDE), Critics(S, A, WIDE, norm), 0.2)


def td3_agent(norm: bool) -> TD3Agent:
    """TD3's networks."""
    return TD3Agent(DeterministicActor(S, A, NARROW), Critics(S, A, NARROW, norm))


def _frozen(agent: Any, *names: str) -> Any:
    for name in names:
        getattr(agent, name).requires_grad_(False)
    return agent


def _ours(make: Callable[[], Any], agent: Callable[[], Any], online: bool = False) -> Callable[[bool], Update]:
    def build(compiled: bool) -> Update:
        phase = ready(make(), agent(), compiled)
        if online:
            return Bare(phase, live(online_data()))
        data = offline_data()
        _attach(phase, data)
        return Bare(phase, chunked(data))

    return build


def _attach(phase: Any, data: OfflineData) -> None:
    """What the phase computes once a transition before it starts."""
    assert data.store is not None
    with torch.no_grad():
        whole = data.prepare(data.store.gather(torch.arange(len(data.store))), torch.device("cpu"))
        for name, values in phase.transition_cache(whole).items():
            data.store.attach(name, values)


def _ppo(compiled: bool) -> Update:
    agent = PPOAgent(GaussianActor(S, A, NARROW), ValueNet(S, WIDE, "tanh"), 0.99)
    phase = ready(OnlinePPO(), agent, compiled)
    rollout = TensorDict(_rollout("observation", "action"), [2048])
    return Bare(phase, _minibatches(rollout, 128))


def _rollout(observation: str, action: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {observation: (2048, S), action: (2048, A)}
    rows = {name: torch.randn(shape) for name, shape in shapes.items()}
    columns = {"log_prob": torch.full((2048,), -4.0), "advantage": torch.randn(2048), "value_target": torch.randn(2048)}
    return {**rows, **columns}


def _minibatches(rollout: TensorDict, size: int) -> Iterator[TensorDictBase]:
    while True:
        for rows in torch.split(torch.randperm(len(rollout)), size):
            yield rollout[rows]


def _ppo_values(compiled: bool) -> Update:
    agent = PPOAgent(GaussianActor(S, A, NARROW), ValueNet(S, WIDE, "tanh"), 0.99)
    agent.actor.requires_grad_(False)
    phase, data = ready(ReevaluatePPO("unused"), agent, compiled), offline_data(512)
    assert data.store is not None
    data.store.attach("return_to_go", data.store.returns_to_go(0.99))
    return Bare(phase, chunked(data))


# ---- the textbook's learners -------------------------------------------------------------------------------------


def _theirs(learner: Callable[[], Any], online: bool = False) -> Callable[[], Update]:
    def build() -> Update:
        subject, rows = learner(), columns(offline_data())
        if online:
            half = BATCH // 2
            buffer = textbook.Replay({name: column[:20_000].clone() for name, column in rows.items()}, half)
            replay: Any = textbook.Mixed(buffer, textbook.Replay(rows, half))
        else:
            replay = textbook.Replay(rows, BATCH)
        return lambda: subject.update(replay.sample())

    return build


def _their_ppo() -> Update:
    subject, rollout = textbook.PPO(S, A, NARROW, WIDE), _rollout("s", "a")

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        while True:
            for rows in torch.split(torch.randperm(2048), 128):
                yield {name: column[rows] for name, column in rollout.items()}

    stream = batches()
    return lambda: subject.update(next(stream))


def _their_ppo_values() -> Update:
    data = offline_data()
    assert data.store is not None
    rows = {"s": columns(data)["s"], "r": data.store.leaves["reward"]}
    targets = data.store.returns_to_go(0.99)
    usable = data.store.td_rows if data.store.td_rows is not None else torch.arange(len(data.store))
    rows = {"s": rows["s"], "r": rows["r"][usable], "return_to_go": targets[usable]}
    subject, replay = textbook.PPOReevaluation(S, WIDE), textbook.Replay(rows, 512)
    return lambda: subject.update(replay.sample())


CASES = [
    Case(
        "SAC online",
        _ours(OnlineSAC, lambda: sac_agent(True), online=True),
        _theirs(lambda: textbook.SAC(S, A, WIDE), online=True),
    ),
    Case(
        "SAC re-evaluation",
        _ours(lambda: ReevaluateSAC("unused"), lambda: _frozen(sac_agent(True), "actor", "log_alpha")),
        _theirs(lambda: textbook.SACReevaluation(S, A, WIDE)),
    ),
    Case(
        "SAC alignment",
        _ours(lambda: AlignSAC("unused"), lambda: _frozen(sac_agent(True), "log_alpha")),
        _theirs(lambda: textbook.SACAlignment(S, A, WIDE)),
    ),
    Case(
        "TD3 online",
        _ours(OnlineTD3, lambda: td3_agent(True), online=True),
        _theirs(lambda: textbook.TD3(S, A, NARROW), online=True),
        period=2,
    ),
    Case(
        "TD3 re-evaluation",
        _ours(lambda: ReevaluateTD3("unused"), lambda: _frozen(td3_agent(True), "actor")),
        _theirs(lambda: textbook.TD3Reevaluation(S, A, NARROW)),
    ),
    Case(
        "TD3 alignment",
        _ours(lambda: AlignTD3("unused"), lambda: td3_agent(True)),
        _theirs(lambda: textbook.TD3Alignment(S, A, NARROW)),
    ),
    Case("CQL", _ours(CQL, lambda: sac_agent(False)), _theirs(lambda: textbook.CQL(S, A, WIDE))),
    Case(
        "IQL",
        _ours(
            lambda: IQL(anneal_updates=1_000_000),
            lambda: IQLAgent(GaussianActor(S, A, NARROW), Critics(S, A, NARROW, False), ValueNet(S, NARROW)),
        ),
        _theirs(lambda: textbook.IQL(S, A, NARROW)),
    ),
    Case("TD3+BC", _ours(TD3BC, lambda: td3_agent(False)), _theirs(lambda: textbook.TD3BC(S, A, NARROW)), period=2),
    Case("PPO online", _ppo, _their_ppo),
    Case("PPO re-evaluation", _ppo_values, _their_ppo_values),
]
