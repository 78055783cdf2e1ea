"""Each step of each algorithm twice: the package's method without a Trainer, and the textbook's learner.

Sizes are the paper's for Hopper: S = 11, A = 3, batch 256; SAC's and CQL's networks 3×256, the others' 2×256, critics
with LayerNorm but offline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import textbook
import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn

from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.data.stream import OfflineStream
from o2o_lightning.engine.compiled import CompiledEngine
from o2o_lightning.engine.engine import Engine
from o2o_lightning.engine.noise import NoiseBlocks
from o2o_lightning.methods.cql import CQL
from o2o_lightning.methods.iql import IQL
from o2o_lightning.methods.method import Method, Moment, Task
from o2o_lightning.methods.o2 import ppo, sac, td3
from o2o_lightning.methods.td3_bc import TD3BC
from o2o_lightning.nn.actor import DeterministicActor
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.gaussian import GaussianActor
from o2o_lightning.nn.squashed_gaussian import SquashedGaussianActor
from o2o_lightning.objectives.returns import cut_returns
from o2o_lightning.replay.store import owners
from o2o_lightning.replay.table import TERMINATED, TRUNCATED

S, A, BATCH, CHUNK = 11, 3, 256, 16
DATASET = "embedded:hopper-medium"
WIDE, NARROW = (256, 256, 256), (256, 256)
CPU = torch.device("cpu")
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
    """Updates of a method without Lightning: what a loop written by hand would do with the same steps."""

    def __init__(
        self,
        method: Method,
        batches: Iterator[TensorDictBase],
        compiled: bool = False,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.method, self.batches = method, batches
        self.engine = CompiledEngine(method) if compiled else Engine(method)
        self.noise = NoiseBlocks(0, CPU)
        self.optimizer = optimizer or method.optimizer(
            [
                {
                    "params": [part] if isinstance(part, nn.Parameter) else list(part.parameters()),
                    "lr": rate,
                    "name": name,
                }
                for name, (part, rate) in method.learners().items()
            ]
        )
        self.updates = 1 if hasattr(method, "policy_delay") else 0

    def __call__(self) -> None:
        batch, optimizer = next(self.batches), self.optimizer
        noise = self.noise.draw(self.method.noise(tuple(batch["action"].shape)))
        # each update is an environment step's first
        for loss in self.engine.losses(Moment(self.updates), batch, noise):
            optimizer.zero_grad(set_to_none=True)
            loss.value.backward()
            optimizer.step()
        self.updates += 1


def offline_data(batch_size: int = BATCH) -> OfflineData:
    """The embedded Hopper set."""
    return _set_up(OfflineData(DATASET, batch_size=batch_size))


def online_data(filled: int = 20_000) -> OnlineData:
    """With a buffer as the online phase has it after ``filled`` environment steps."""
    data = _set_up(OnlineData(dataset=DATASET))
    assert data.store is not None
    data.buffer.extend(data.store.gather(torch.arange(filled)))
    return data


def _set_up(data: Any) -> Any:
    data.setup("fit")
    data.normalizer = data.fit_normalizer()
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(device=CPU, lane=None))  # says where batches belong
    return data


def chunked(data: OfflineData) -> Iterator[TensorDictBase]:
    """The batches of the offline phases, drawn and gathered a chunk at a time."""
    stream = {"clock": lambda: 0, "total": 10**9, "chunk": CHUNK, "cadences": ()}
    for numbers in OfflineStream(data.numbers, data.batch_size, **stream):
        yield from data.batches(numbers)


def live(data: OnlineData) -> Iterator[TensorDictBase]:
    """The batches of the online phases, half online and half offline."""
    while True:
        yield from data.batches(data.numbers())


def columns(data: OfflineData) -> dict[str, torch.Tensor]:
    """The dataset as the textbook's replay holds it: usable transitions, normalised before training."""
    assert data.store is not None
    rows = data.store.td_rows if data.store.td_rows is not None else torch.arange(len(data.store))
    batch = data.prepare(data.store.gather(rows), CPU)
    successor = batch["next"]
    named = {"s": batch["observation"], "a": batch["action"], "r": batch["reward"]}
    return {**named, "s2": successor["observation"], "d": successor["terminated"]}


# ---- the package's methods ---------------------------------------------------------------------------------------


@dataclass
class Networks:
    """The checkpoint that re-evaluation and alignment start from: new networks."""

    actor: Callable[[], Any]
    critic: Callable[[], Critics] | None = None
    phase: str = "reevaluate"

    def has(self, name: str) -> bool:
        return False

    def build_actor(self, name: str = "actor") -> Any:
        return self.actor()

    def build_critic(self, name: str = "critic") -> Critics:
        assert self.critic is not None
        return self.critic()

    def build_value(self) -> None:
        return None

    def load(self, net: Any, name: str) -> Any:
        return net


STOCHASTIC = Networks(lambda: SquashedGaussianActor(S, A, WIDE), lambda: Critics(S, A, WIDE, True))
DETERMINISTIC = Networks(lambda: DeterministicActor(S, A, NARROW), lambda: Critics(S, A, NARROW, True))
GAUSSIAN = Networks(lambda: GaussianActor(S, A, NARROW))


def built(method: Any, source: Networks | None = None) -> Any:
    """``method`` with networks of these sizes."""
    method.build(Task(S, A, total=1_000_000), source)
    return method


def online_sac() -> sac.Online:
    """O2SAC online, from scratch."""
    return built(sac.Online(hidden=WIDE, critic_hidden=WIDE, layer_norm=True))  # type: ignore[no-any-return]


def online_td3() -> td3.Online:
    """O2TD3 online, from scratch."""
    return built(td3.Online(hidden=NARROW, layer_norm=True))  # type: ignore[no-any-return]


def _online(make: Callable[[], Any]) -> Callable[[bool], Update]:
    return lambda compiled: Bare(make(), live(online_data()), compiled)


def _offline(make: Callable[[], Any], source: Networks | None = None) -> Callable[[bool], Update]:
    def build(compiled: bool) -> Update:
        method, data = built(make(), source), offline_data()
        data.precompute(method.cache)
        return Bare(method, chunked(data), compiled)

    return build


def _ppo(compiled: bool) -> Update:
    rollout = TensorDict(_rollout("observation", "action"), [2048])
    return Bare(built(ppo.Online(hidden=NARROW, value_hidden=WIDE)), _minibatches(rollout, 128), compiled)


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
    data, method = offline_data(512), built(ppo.Reevaluate(hidden=WIDE), GAUSSIAN)
    assert data.store is not None
    columns, tails = _value_labels(data)
    method.tails = tails
    for name, column in columns.items():
        data.store.attach(name, column)
    return Bare(method, chunked(data), compiled)


def _value_labels(data: OfflineData) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Columns ``[N]`` of the returns that V is fitted to, and the last known state of each episode, normalised."""
    store, normalizer = data.store, data.normalizer
    assert store is not None and normalizer is not None
    returns, weight = cut_returns(store["reward"], store[TERMINATED], store[TRUNCATED], store.known, 0.99)
    labels = {"return_to_go": returns, "tail_weight": weight, "tail": owners(store.episodes).float()}
    return labels, normalizer(store["next", "observation"][store.episodes[:, 1] - 1])


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
    labels, tails = _value_labels(data)
    rows = {name: column[data.store.known] for name, column in {"r": data.store["reward"], **labels}.items()}
    rows = {**rows, "s": columns(data)["s"], "tail": tails[rows["tail"].long()]}
    subject, replay = textbook.PPOReevaluation(S, WIDE), textbook.Replay(rows, 512)
    return lambda: subject.update(replay.sample())


CASES = [
    Case("SAC online", _online(online_sac), _theirs(lambda: textbook.SAC(S, A, WIDE), online=True)),
    Case(
        "SAC re-evaluation",
        _offline(lambda: sac.Reevaluate(hidden=WIDE, layer_norm=True), STOCHASTIC),
        _theirs(lambda: textbook.SACReevaluation(S, A, WIDE)),
    ),
    Case("SAC alignment", _offline(sac.Align, STOCHASTIC), _theirs(lambda: textbook.SACAlignment(S, A, WIDE))),
    Case("TD3 online", _online(online_td3), _theirs(lambda: textbook.TD3(S, A, NARROW), online=True), period=2),
    Case(
        "TD3 re-evaluation",
        _offline(lambda: td3.Reevaluate(hidden=NARROW, layer_norm=True), DETERMINISTIC),
        _theirs(lambda: textbook.TD3Reevaluation(S, A, NARROW)),
    ),
    Case("TD3 alignment", _offline(td3.Align, DETERMINISTIC), _theirs(lambda: textbook.TD3Alignment(S, A, NARROW))),
    Case(
        "CQL",
        _offline(lambda: CQL(hidden=WIDE, critic_hidden=WIDE, temperature=0.2)),
        _theirs(lambda: textbook.CQL(S, A, WIDE)),
    ),
    Case("IQL", _offline(lambda: IQL(hidden=NARROW)), _theirs(lambda: textbook.IQL(S, A, NARROW))),
    Case("TD3+BC", _offline(lambda: TD3BC(hidden=NARROW)), _theirs(lambda: textbook.TD3BC(S, A, NARROW)), period=2),
    Case("PPO online", _ppo, _their_ppo),
    Case("PPO re-evaluation", _ppo_values, _their_ppo_values),
]
