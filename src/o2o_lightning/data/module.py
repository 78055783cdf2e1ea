"""The DataModule of the offline phases: dataset, normalisation, batches, evaluation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

import lightning as L
import torch
from tensordict import TensorDictBase
from torch import Tensor

from o2o_lightning.blocks import blocks
from o2o_lightning.data.mapped import Opened, open_dataset
from o2o_lightning.data.raw import Meaning, Said, Units
from o2o_lightning.data.stream import Chunks, OfflineStream, prepare, prepare_rows
from o2o_lightning.envs.episodes import Act, Evaluation, Evaluator, Player
from o2o_lightning.envs.make import EnvSpec, env_spec, plain
from o2o_lightning.envs.scores import reference_scores
from o2o_lightning.errors import UserError
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.ranges import check_settings
from o2o_lightning.ranks import Ranks
from o2o_lightning.replay.buffer import Replay
from o2o_lightning.replay.mirror import mirror
from o2o_lightning.replay.rewards import RewardMap, return_range_scale
from o2o_lightning.replay.store import TransitionStore
from o2o_lightning.replay.table import Key, Table, nested, pick_of_all
from o2o_lightning.seeds import rows_seed
from o2o_lightning.settings import plain as as_plain

PRECOMPUTE_BLOCK = 8192
PRECOMPUTE_ROWS = 2_000_000  # beyond, a phase need not wait; not a matter of storage, which changes no bit


@dataclass(eq=False, repr=False)
class OfflineData(L.LightningDataModule):
    """A dataset as chunks of batches, and the environment to evaluate in.

    Args:
        dataset: ``path.hdf5``, ``d4rl:NAME``, ``minari:ID`` or ``embedded:hopper-medium``.
        env_id: Gymnasium id to evaluate in; the dataset's own by default.
        env_kwargs: what ``gymnasium.make`` gets beside the id, plain values by name; checkpoints keep them.
        batch_size: transitions a gradient update, of each process.
        chunk: gradient updates that are made at once; changes speed, never results' counts.
        normalize: standardise observations with the dataset's mean and deviation.
        normalize_eps: added to the deviation.
        reward_scale, reward_shift: affine map of rewards for learning; scores use raw rewards.
        reward_range: scale rewards by 1000 / (highest − lowest return) of the dataset instead, as CORL does on MuJoCo.
        eval_every_updates: gradient updates between evaluations of an offline phase; 0 only at its end.
        eval_every: environment steps between evaluations of the online phase; 0 for none but at its start and
            end, and at its end alone where the reference policy looks at no score.
        eval_episodes: episodes an evaluation; 0: none is ever made.
        eval_seed: start states of the evaluation; the same for every evaluation of every phase.
        eval_async: evaluate in a second process while training goes on, where it need not wait for the score; the same
            results, one evaluation later.
        env_process: environments in processes of their own, those of several seeds side by side.
        memmap: ``true``: transitions lie in memory-mapped files in the cache, made at the first use and shared by later
            runs; ``false``: in memory; ``auto``: mapped above ``memory_limit_gb``. The results are the same bits.
        memory_limit_gb: size of the transitions for ``auto``.
        device_limit_gb: most that a GPU keeps of the transitions, dataset and online ones, of all seeds; beyond it the
            host gathers batches, while the GPU is at work on those before.
        observation_layout: keys of a dictionary observation in the dataset's order, where the dataset does not say it
            itself; by width when empty.
        actions: what the dataset's are counted in: ``native``, the environment's units; ``unit``, ``[-1, 1]``;
            ``clip``, native ones that the environment has clipped. ``auto``: as the dataset says, else native, and
            refused where nothing tells them from ``unit``.
        terminals: what the dataset's mean: ``terminated``, terminations alone; ``done``, the end of an episode in
            either way. ``auto``: as the dataset says, else as the environment's step limit tells.
    """

    dataset: str | None = None
    env_id: str | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 256
    chunk: int = 16
    normalize: bool = True
    normalize_eps: float = 1e-3
    reward_scale: float = 1.0
    reward_shift: float = 0.0
    reward_range: bool = False
    eval_every_updates: int = 5000
    eval_every: int = 1000
    eval_episodes: int = 10
    eval_seed: int = 1000
    eval_async: bool = False
    env_process: bool = False
    memmap: bool | Literal["auto"] = "auto"
    memory_limit_gb: float = 0.5
    device_limit_gb: float = 8.0
    observation_layout: Sequence[str] = ()
    actions: Literal["auto", "native", "unit", "clip"] = "auto"
    terminals: Meaning = "auto"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # as types and not as text: a subclass's module may not have the names that its base's options are typed by
        cls.__annotations__ = inspect.get_annotations(cls, eval_str=True)

    def __post_init__(self) -> None:
        super().__init__()
        self.save_hyperparameters(as_plain(self))
        check_settings("data", self)
        self.rewards = RewardMap(self.reward_scale, self.reward_shift)
        self.layout = tuple(self.observation_layout)
        self._asked = (self.dataset, self.said, plain(self.env_kwargs), self.memmap, self.memory_limit_gb)
        self.open = open_dataset
        self._opened: Opened | None = None
        self._before: OfflineData | None = None
        self.normalizer: Normalizer | None = None
        self.buffer = Replay()
        self.store: TransitionStore | None = None
        self.env: EnvSpec | None = None
        self.rows = torch.Generator()
        self.ranks = Ranks()
        self._evaluator: Evaluator | None = None
        self._live_cache: Callable[[TensorDictBase], dict[str, Tensor]] | None = None

    # ---- Lightning -----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if self._opened is not None:
            return
        if self._before is not None and self._before._opened is not None:
            self._opened, self.buffer = self._before._opened, self._before.buffer
        elif self.dataset is not None:
            limit = int(self.memory_limit_gb * 2**30)
            self._opened = self.open(self.dataset, self.said, self.memmap, limit, self.env_kwargs)
        elif self.env_id is not None:
            env = env_spec(self.env_id, layout=self.layout, kwargs=self.env_kwargs)
            self._opened = Opened(None, env, self.env_id, env.layout)
        else:
            sources = "path.hdf5, d4rl:NAME, minari:ID or embedded:hopper-medium"
            raise UserError(f"no dataset: pass --data.dataset {sources}.")
        (self.store, self.env, self.env_id, self.layout), self._before = self._opened, None
        if self.reward_range and self.store is not None:
            self.rewards = RewardMap(return_range_scale(self.store))
        self.buffer.learn_from(*(() if self.store is None else (self.store,)))
        self.ranks = Ranks.of(self.trainer)
        self.rows.manual_seed(rows_seed(self.ranks.rank))

    def train_dataloader(self) -> Chunks:
        self.needed("this phase learns from one")
        total, module = cast(Any, self.trainer).max_steps, self.module
        if total <= 0:
            raise UserError("--trainer.max_steps: pass how many gradient updates this phase makes.")
        cadences = self.eval_every_updates, *module.cadences
        clock = {"clock": lambda: module.updates, "total": total, "chunk": module.chunk, "cadences": cadences}
        return OfflineStream(self.numbers, self.batch_size, **clock)

    def val_dataloader(self) -> range:
        return range(1)  # one evaluation; the episodes are the evaluator's

    def test_dataloader(self) -> range:
        return range(1)

    def predict_dataloader(self) -> Iterator[TensorDictBase]:
        gather = self.needed("actions are predicted at one's observations").gather
        return (gather(torch.arange(part.start, part.stop)) for part in self.blocks())

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # the stream puts each batch on the device; a live chunk cannot be moved as a whole

    def teardown(self, stage: str) -> None:
        if self.store is not None:
            self.store.restore()

    # ---- for phases ----------------------------------------------------------------------------------------------

    def follow(self, before: OfflineData) -> None:
        """Learns from the dataset and the buffer of the phase ``before``, if that one has asked for the same."""
        self._before = before if before._asked == self._asked else None

    def needed(self, reason: str) -> TransitionStore:
        """The dataset's transitions; refused without one, for this ``reason``."""
        if self.store is None:
            raise UserError(f"no dataset: {reason}. Pass --data.dataset.")
        return self.store

    def sizes(self) -> tuple[int, int]:
        """Observation and action widths."""
        facts = self.env if self.store is None else self.store.manifest
        assert facts is not None
        return facts.observation_dim, facts.action_dim

    def manifest(self) -> dict[str, Any]:
        """Facts of the dataset, for checkpoints and results; empty without one."""
        return {} if self.store is None else self.store.manifest.to_dict()

    @property
    def said(self) -> Said:
        """What the options say of the dataset."""
        units: Units | None = None if self.actions == "auto" else self.actions
        steps = self.env_kwargs.get("max_episode_steps")
        limit = steps if isinstance(steps, int) and steps > 0 else None  # -1 is Gymnasium's word for none
        return Said(self.env_id, limit, units, self.terminals, self.layout)

    @property
    def module(self) -> Any:
        """The phase."""
        return cast(Any, self.trainer).lightning_module

    def numbers(self, shape: tuple[int, int]) -> Any:
        """Which rows K training batches of B have, ``[K, B]``: uniform with replacement, from the run's generator."""
        return self.needed("batches are drawn of one").sample_rows(shape, self.rows)

    def batches(self, numbers: Any) -> Iterator[TensorDictBase]:
        """The K batches ``[B]`` of those ``numbers``, ready for the networks: one gather of all."""
        store = self.needed("batches are gathered of one").near
        columns = self.prepare_rows(store.pick(numbers).to(self.module.device))
        if store.caches is not None:
            columns |= store.caches.layout.columns(store.caches.pick(numbers).to(self.module.device))
        for parts in zip(*(column.unbind(0) for column in columns.values()), strict=True):
            yield self.complete(nested(dict(zip(columns, parts, strict=True)), numbers.shape[1:]))

    def picked_of_all(self, each: Sequence[OfflineData], numbers: Sequence[Any]) -> list[Tensor]:
        """Raw rows ``[S, K, B, W]`` of several seeds by the ``numbers`` of each, and those of caches."""
        near = [data.needed("batches are gathered of one").near for data in each]
        caches = [table.caches for table in near if table.caches is not None]
        return [pick_of_all(tables, numbers) for tables in (near, caches) if tables]

    def keep_near(self, device: torch.device) -> bool:
        """Keeps what batches are gathered of on the ``device`` too; False if that can't be, and the host gathers."""
        limit, lane = int(self.device_limit_gb * 2**30), self.module.lane
        seeds = 1 if lane is None else lane.lanes.count
        return self._live_cache is None and mirror(self.buffer.tables.tables, device, limit, seeds)

    def refresh(self) -> None:
        """Brings what has been written since to where batches are gathered."""
        for table in self.buffer.tables.tables:
            if table.mirror is not None:
                table.mirror.refresh()

    def let_go(self) -> None:
        """Undoes :meth:`keep_near`."""
        for table in self.buffer.tables.tables:
            table.mirror = None

    def fit_normalizer(self) -> Normalizer:
        """Constants from the observations of :meth:`normalized_rows`; the identity when switched off."""
        if not self.normalize or self.store is None:
            return Normalizer.identity(self.sizes()[0])
        return Normalizer.fit(self.store["observation"], self.normalize_eps, self.normalized_rows(self.store))

    def normalized_rows(self, store: TransitionStore) -> Tensor | None:
        """Those that start a usable transition; None for all."""
        return store.td_rows

    def prepare(self, batch: TensorDictBase, device: torch.device) -> TensorDictBase:
        """Raw transitions to what networks take."""
        assert self.normalizer is not None
        return prepare(batch, self.normalizer, self.rewards, device)

    def prepare_rows(self, rows: Tensor) -> dict[Key, Tensor]:
        """The same of rows ``[…, W]`` of a table, in place and by name."""
        assert self.normalizer is not None
        return prepare_rows(rows, self.buffer.layout, self.normalizer, self.rewards)

    @torch.no_grad()
    def precompute(self, compute: Callable[[TensorDictBase], dict[str, Tensor]]) -> None:
        """Attaches to every transition what ``compute`` makes of it (frozen networks only), once before a phase.

        A large dataset would keep the phase from starting for minutes: then :meth:`complete` does it batch by batch.
        """
        self._live_cache = None
        if self.store is None:
            return
        caches: Table | None = None
        for part in self.blocks():
            made = compute(self.prepare(self.store.gather(torch.arange(part.start, part.stop)), self.module.device))
            if made and len(self.store) > PRECOMPUTE_ROWS:
                self._live_cache = compute
            if not made or self._live_cache is not None:
                return
            if caches is None:
                caches = Table.of(made, len(self.store))
            caches.put(part, made)
        if caches is not None:
            self.store.join(caches)

    @torch.no_grad()
    def complete(self, batch: TensorDictBase) -> TensorDictBase:
        """A prepared batch ``[B]`` with what :meth:`precompute` did not attach."""
        if self._live_cache is not None:
            batch.update({name: values.float() for name, values in self._live_cache(batch).items()})
        return batch

    def local_state(self) -> dict[str, Any]:
        """What this process needs to go on exactly, beside the checkpoint: tensors and primitives."""
        return {"rows": self.rows.get_state()}

    def load_local_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`local_state`."""
        self.rows.set_state(state["rows"])

    def evaluate(self, act: Act | Player) -> Evaluation:
        """Episodes of ``act``, raw observations to actions, on environments that training never touches."""
        if self._evaluator is None:
            self._evaluator = self.evaluator()(ranks=self.ranks)
        return self._evaluator.run(act)

    def evaluator(self, episodes: int | None = None, seed: int | None = None) -> Callable[..., Evaluator]:
        """What makes an evaluator of this data's policies, here or in another process.

        By default, of as many episodes as an evaluation has, and from the same start states.
        """
        assert self.env_id is not None
        reference = reference_scores(self.env_id)  # of the task that is played, whatever was learned from
        episodes = self.eval_episodes if episodes is None else episodes
        seed = self.eval_seed if seed is None else seed
        width, kwargs = self.sizes()[0], self.env_kwargs
        return partial(Evaluator, self.env_id, width, episodes, seed, reference, self.layout, kwargs)

    def blocks(self) -> Iterator[slice]:
        """The dataset's rows in blocks that a network takes at once."""
        return blocks(len(self.needed("its rows are gone through")), PRECOMPUTE_BLOCK)
