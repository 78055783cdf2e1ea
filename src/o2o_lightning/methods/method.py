"""What a learning rule is. It knows nothing of Lightning, files, environments or devices."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import dataclass_transform

from o2o_lightning.nn.actor import StochasticActor
from o2o_lightning.nn.critics import Critics, ValueNet
from o2o_lightning.nn.optimizers import Adam
from o2o_lightning.ranges import check_settings
from o2o_lightning.ranks import Ranks

Batch = Any  # what maps a column's name, or ("next", name), to a tensor [B, …]: a TensorDict, or a dict
FloatArray = NDArray[np.float32]
Learners = dict[str, tuple[nn.Module | nn.Parameter, float]]


class Loss(NamedTuple):
    """One scalar to descend, and what may be logged of it (tensors of any shape, averaged only when logged).

    ``state``: new values of buffers of the method by name, which they take when the loss has been descended.
    """

    value: Tensor
    metrics: dict[str, Tensor]
    state: dict[str, Tensor] = {}  # noqa: RUF012 (nobody writes to it)


class Follow(NamedTuple):
    """``target`` moves towards ``source`` by ``rate``: a number, or an entry of a buffer, 0-d, which a loss has set."""

    target: nn.Module
    source: nn.Module
    rate: float | Tensor


Noise = dict[str, Tensor]
Step = Callable[[Batch, Noise], Loss]


class Normal(NamedTuple):
    """Standard normal noise of a shape."""

    shape: tuple[int, ...]


class Uniform(NamedTuple):
    """Uniform noise in [−1, 1) of a shape."""

    shape: tuple[int, ...]


Draws = dict[str, Normal | Uniform]
Updates = Iterator[Step | Follow]


class Moment(NamedTuple):
    """Where in a run an update stands.

    Attributes:
        update, env_steps: its number, from 0, and the environment steps made before it.
        place: its number, from 0, among the updates since the environment was last stepped.
        new_steps: how many environment steps were made together then, one by each process.
    """

    update: int
    env_steps: int = 0
    place: int = 0
    new_steps: int = 1


class Task(NamedTuple):
    """What a method is told of the data and the environment before its networks are made.

    Attributes:
        observation_dim, action_dim: S and A.
        total: gradient updates of the phase, or its environment steps where it interacts.
        horizon, best_return: most steps of an episode, None where nobody knows; the highest of the dataset's episodes.
        environments: how many are stepped side by side, those of all processes.
        rollout: environment steps between two rounds of updates of an on-policy method.
        mean_reward, ending: of the dataset's transitions, where needed: the mean, and the share that terminate.
    """

    observation_dim: int
    action_dim: int
    total: int = 0
    horizon: int | None = None
    best_return: float | None = None
    environments: int = 1
    rollout: int = 0
    mean_reward: float = 0.0
    ending: float = 0.0

    @property
    def sizes(self) -> tuple[int, int]:
        """S and A."""
        return self.observation_dim, self.action_dim


class Source(Protocol):
    """The networks of the checkpoint that a phase starts from."""

    phase: str

    def has(self, name: str) -> bool:
        """Whether a network of that name is stored."""

    def build_actor(self, name: str | None = None) -> Any:
        """The policy stored under ``name``, what the checkpoint stands for where there is none of that name."""

    def build_critic(self, name: str = "critic") -> Critics:
        """The critics stored under ``name``; refused where there are none."""

    def build_value(self) -> ValueNet | None:
        """The state-value network, None where there is none."""

    def load(self, net: Any, name: str) -> Any:
        """``net`` with the tensors stored under ``name``."""

    def load_scalar(self, parameter: nn.Parameter, name: str) -> None:
        """``parameter`` as it is stored under ``name``, or as it is where nothing is."""


@dataclass_transform(eq_default=False, kw_only_default=True)
class Method(nn.Module):
    """One learning rule, offline or online: a phase gives it batches, an environment its actions.

    A subclass is a dataclass of its options: an annotated attribute with a default is one, typed, checked and shown by
    the command line, and ``Args`` of the docstring its help. :meth:`build` makes the networks, :meth:`learners` says
    which of them learn, :meth:`update` the order of an update. Whatever changes between two updates reaches a step as
    a tensor: a parameter, a buffer, the batch, the noise.
    """

    name: ClassVar[str]
    actor_kind: ClassVar[str | None] = None  # of the policy that it works on or makes; None for any
    needs: ClassVar[tuple[str, ...]] = ()  # beyond a transition: "return_to_go", "window"; "priority"; "mean_reward"
    makes_critic: ClassVar[bool] = False  # an action-value critic, which it hands on
    needs_critic: ClassVar[bool] = False  # of the checkpoint that it starts from
    needs_source: ClassVar[bool] = False  # a checkpoint: from new networks it would be another method
    draws: ClassVar[bool] = False  # its steps draw random numbers beside their noise: dropout
    on_policy: ClassVar[bool] = False  # learns from rounds of its own rollouts, and from nothing else
    carries_moments: ClassVar[tuple[str, ...]] = ("reevaluate", "align")  # phases whose Adam moments go on (D47)
    pays_back: ClassVar[int | None] = None  # updates that earn the compilation, docs/speed.md; None where none do
    stands_for = "actor"  # the network that is evaluated, exported and handed on
    magnitudes: ClassVar[tuple[str, ...]] = ()  # of `curves`: in the rewards' own unit, which may be tiny

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # as types and not as text: a subclass's module may not have the names that its base's options are typed by
        cls.__annotations__ = inspect.get_annotations(cls, eval_str=True)
        dataclass(eq=False, repr=False, kw_only=True)(cls)

    def __post_init__(self) -> None:
        super().__init__()
        check_settings("model", self)
        self.ranks = Ranks()  # the processes that share each update; the phase says which

    if typing.TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Networks, which :meth:`build` makes."""

    def build(self, task: Task, source: Source | None = None) -> None:
        """Makes the networks: taken from ``source``, or anew."""
        raise NotImplementedError(f"{type(self).__name__}.build")

    def learners(self) -> Learners:
        """Networks (or scalars) that learn, by name, with their learning rates."""
        raise NotImplementedError(f"{type(self).__name__}.learners")

    def update(self, moment: Moment) -> Updates:
        """The steps of one update in order, each seeing the networks after the one before: here, ``step`` alone."""
        yield self.step

    def noise(self, shape: tuple[int, ...]) -> Draws:
        """The random numbers of an update, by name, for actions of ``shape`` ``[B, A]``: a step draws none itself."""
        return {}

    def act(self, observation: FloatArray, generator: np.random.Generator) -> FloatArray:
        """The exploring action ``[A]`` at a normalised observation ``[S]``: a sample, of a policy that has any."""
        actor = self.explorer()
        return actor.explore(observation, generator) if isinstance(actor, StochasticActor) else actor.act(observation)

    def before_step(self, step: int, last_return: float | None, generator: np.random.Generator) -> None:
        """Before each action: the number of the episode's step, from 0, and the return of the episode before."""

    def explorer(self) -> Any:
        """The policy whose actions explore."""
        return self.actor

    def rates(self, moment: Moment) -> dict[str, float]:
        """Learning rates of those :meth:`learners` that follow a schedule."""
        return {}

    def schedules(self, moment: Moment) -> dict[str, float]:
        """Values of those scalar buffers, by name, that follow a schedule: the phase sets them before each update."""
        return {}

    def gradient_limits(self) -> dict[str, float]:
        """Largest gradient norm of those :meth:`learners` that are clipped."""
        return {}

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The one optimizer of all :meth:`learners`."""
        return Adam(groups)

    def moment_scales(self, sampled: Callable[[], Batch]) -> dict[str, float]:
        """How much larger some gradients are than in the phase before, on ``sampled`` rows; 0: moments begin anew."""
        return {}

    def cache(self, batch: Batch) -> dict[str, Tensor]:
        """What depends only on frozen networks and the dataset: computed once a transition before the phase."""
        return {}

    def curves(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars that settle when it has converged, of fixed transitions: ratios, but for :attr:`magnitudes`."""
        return {}

    def returns_to_go(self, reward: Tensor, terminated: Tensor, truncated: Tensor) -> Tensor:
        """The column ``return_to_go`` ``[N]`` of rows in time order, for a method that :attr:`needs` it."""
        raise NotImplementedError(f"{type(self).__name__}.returns_to_go")

    def facts(self) -> dict[str, Any]:
        """What a phase's summary says beyond what it says of all."""
        return {}

    @classmethod
    def policy_family(cls, options: Mapping[str, Any]) -> str | None:
        """:attr:`actor_kind`, where it does not depend on the ``options``."""
        return cls.actor_kind

    @property
    def label(self) -> str:
        """What ran, as results and checkpoints name it."""
        return self.name

    def forward(self, step: str, batch: Batch, noise: Noise) -> Loss:
        """The step of that name, so that its networks may be lent (``torch.func.functional_call``)."""
        return getattr(self, step)(batch, noise)  # type: ignore[no-any-return]
