"""What Lightning's users expect of any module: hyper-parameters, loading, and to be validated, tested, asked."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor
from typing_extensions import Self

from o2o_lightning.checkpoint.handover import KEY, Handover, read_checkpoint, read_handover
from o2o_lightning.envs.episodes import Evaluation
from o2o_lightning.errors import UserError
from o2o_lightning.machine import library_versions
from o2o_lightning.methods.method import Method, Task
from o2o_lightning.nn.actor import Policy
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.phases.rows import Rows
from o2o_lightning.policies.history import player_of
from o2o_lightning.settings import plain, settings

METHODS = "o2o_lightning.methods."


class Contract(Rows):
    """A phase as a LightningModule like others: base of all phases.

    ``trainer.validate`` and ``trainer.test`` evaluate its policy in the environment of the data, ``trainer.predict``
    gives its deterministic actions ``[B, A]``, in ``[-1, 1]``, at the dataset's observations in order.
    """

    phase: ClassVar[str]
    method: Method
    normalizer: Normalizer
    source: Handover | None
    result: Evaluation | None = None
    aligned: bool = True  # unless an alignment has a goal, and has not reached it
    _labels: Iterator[Tensor]

    def keep_hyperparameters(self) -> None:
        """What the phase was made with, as plain values: every checkpoint and every logger has them."""
        self.save_hyperparameters(ignore=["method", "_class_path", "_instantiator"])
        self.save_hyperparameters(plain({**self.hparams, "method": described(self.method)}))

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, method: Method | None = None, **options: Any
    ) -> Self:
        """The phase as a checkpoint of it has it, with its networks and clocks.

        Args:
            checkpoint_path: that of such a phase.
            map_location: a device, the CPU by default.
            method: a rule of your own, with its options: only those of this package are made by what a file says.
            options: other arguments of the class than the checkpoint's.

        Raises:
            UserError: a checkpoint of another phase, or of a method that is not of this package.
        """
        source = read_handover(checkpoint_path, (cls.phase,), f"{cls.__name__}.load_from_checkpoint")
        checkpoint = read_checkpoint(checkpoint_path)
        given = dict(checkpoint.get("hyper_parameters") or checkpoint["o2o_progress"]["config"]["model"]["init_args"])
        rule = given.pop("method", {})
        given = {name: value for name, value in given.items() if value is not None} | options
        kind: Any = cls
        phase: Self = kind(method or _rule(str(checkpoint_path), rule), **settings(cls, given))
        phase.restore(source)
        phase.load_state_dict(checkpoint["state_dict"])
        phase.on_load_checkpoint(checkpoint)
        return phase if map_location is None else phase.to(map_location)

    def restore(self, source: Handover) -> None:
        """Makes the networks that the checkpoint ``source`` of this phase has."""
        spec = source.actor
        self.normalizer, self.source = source.build_normalizer(), source
        facts: dict[str, Any] = {"horizon": spec.get("horizon"), "best_return": spec.get("target_return")}
        side_by_side = source.state.get("running_return", torch.ones(1)).numel()
        task = Task(spec["observation_dim"], spec["action_dim"], environments=side_by_side, **facts)
        self.method.build(task, None if source.phase == "offline" else source)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        phase: Any = self
        phase.make_sure()
        if phase.lane is not None or phase.device.type != "cpu":  # some share a memory, which would be written whole
            checkpoint["state_dict"] = {name: value.clone() for name, value in checkpoint["state_dict"].items()}
        critic, value = getattr(self.method, "critic", None), getattr(self.method, "value", None)
        checkpoint[KEY] = Handover(
            phase=self.phase,
            algorithm=phase.algorithm,
            origin=phase.algorithm if self.source is None else self.source.origin,
            actor=phase.policy().spec.to_dict(),
            critic=critic.spec.to_dict() if critic is not None else None,
            value=value.spec.to_dict() if value is not None else None,
            stands_for=self.method.stands_for,
            aligned=self.aligned,
            normalizer=self.normalizer.state(),
            env_id=phase.data.env_id,
            manifest=phase.data.manifest(),
            layout=list(phase.data.layout),
            env_kwargs=dict(phase.data.env_kwargs),
            scores=phase.scores,
            returns=phase.returns,
            versions=library_versions(),
        ).pack()
        checkpoint[f"{KEY}_progress"] = {
            "updates": self.updates,
            "env_steps": self.env_steps,
            "eval_env_steps": phase.eval_env_steps,
            "curve": phase.curve,
            "config": phase.config,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        phase: Any = self
        progress = checkpoint[f"{KEY}_progress"]
        self.updates, self.env_steps = progress["updates"], progress["env_steps"]
        phase.eval_env_steps, phase.curve = progress["eval_env_steps"], progress["curve"]
        phase.scores, phase.returns = checkpoint[KEY]["scores"], checkpoint[KEY]["returns"]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._report()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._report()

    def on_predict_start(self) -> None:
        phase: Any = self
        store = phase.data.needed("predictions are made at one's observations")
        # all at once: a sequence policy needs each observation's own episode
        self._labels = iter(player_of(phase.policy(), self.normalizer).label(store, self.device))

    def predict_step(self, batch: TensorDictBase, batch_idx: int) -> Tensor:
        """Actions ``[B, A]`` in ``[-1, 1]`` at the dataset's observations."""
        return torch.stack([*islice(self._labels, len(batch))])

    def _report(self) -> None:
        phase: Any = self
        self.result = result = phase.evaluate()
        self.log("return_mean", result.return_mean, batch_size=1)
        if result.score is not None:
            self.log("score", result.score, batch_size=1)


def check_sizes(policy: Policy, sizes: tuple[int, int]) -> None:
    """Refuses data of other observations and actions than the policy's."""
    own = policy.spec.observation_dim, policy.spec.action_dim
    if own != sizes:
        raise UserError(
            f"the policy takes {own[0]} observation values and gives {own[1]} action values, the data has {sizes[0]} "
            f"and {sizes[1]}. Pass the data that it belongs to."
        )


def described(method: Method) -> dict[str, Any]:
    """A method as configurations name it, with its options."""
    kind = type(method)
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": plain(method)}


def _rule(where: str, rule: dict[str, Any]) -> Method:
    path = str(rule.get("class_path", ""))
    if not path.startswith(METHODS):
        raise UserError(
            f"checkpoint {where}: its method '{path}' is not of this package, and a file's word does not run code. "
            "Pass method=YOUR_RULE(...)."
        )
    kind: Any = resolve_name(path)
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise UserError(f"checkpoint {where}: '{path}' is no method. Pass another.")
    return kind(**settings(kind, rule.get("init_args") or {}))
