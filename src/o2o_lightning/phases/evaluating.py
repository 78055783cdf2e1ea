"""How a phase's policies are evaluated, here or beside those of other seeds."""

from collections.abc import Callable
from typing import Any, cast

from lightning.pytorch.callbacks import ProgressBar

from o2o_lightning.callbacks.hooks import PhaseCallback
from o2o_lightning.callbacks.worker import EvaluationWorker, Snapshot
from o2o_lightning.data.module import OfflineData
from o2o_lightning.engine.lanes import Lane
from o2o_lightning.envs.episodes import Evaluation, Evaluator, Player
from o2o_lightning.nn.actor import Policy
from o2o_lightning.phases.contract import Contract
from o2o_lightning.policies.history import player_of


class Evaluating(Contract):
    """A phase whose policy plays episodes, off the training environment: base of all phases.

    Attributes:
        eval_env_steps: environment steps that all evaluations have taken, a cost of the run.
        curve: of each evaluation the clock, the mean return and the score.
        lane: its place among several seeds in one process.
    """

    def __init__(self) -> None:
        super().__init__()
        self.eval_env_steps = 0
        self.curve: list[list[float | None]] = []
        self.lane: Lane | None = None
        self._worker: EvaluationWorker | None = None

    @property
    def data(self) -> OfflineData:
        """The DataModule; every phase needs one of ours."""
        return cast(OfflineData, self.trainer.datamodule)  # type: ignore[attr-defined]

    def policy(self) -> Policy:
        """The policy that evaluations and exports use."""
        return getattr(self.method, self.method.stands_for)  # type: ignore[no-any-return]

    def evaluate(self, policy: Policy | None = None) -> Evaluation:
        """Evaluates ``policy`` (default: the phase's) from the start states of every evaluation."""
        policy = policy or self.policy()
        if self._beside():
            return self._counted(self._away(policy, None))
        return self.evaluate_player(self._player(policy))

    def evaluate_player(self, player: Player) -> Evaluation:
        """As :meth:`evaluate`, of anything that can play episodes."""
        return self._counted(self.data.evaluate(player))

    def judge(self, policy: Policy, episodes: int, round: int = 0) -> Evaluation:
        """Evaluates ``policy`` by so many episodes from start states that no evaluation, or other round, begins at."""
        make = self.data.evaluator(episodes, self.data.eval_seed + self.data.eval_episodes + round * episodes)
        if self._beside():
            return self._counted(self._away(policy, make))
        return self._counted(make(ranks=self.ranks).run(self._player(policy)))

    def before_evaluation(self) -> None:
        """What a phase measures of its networks whenever its policy is evaluated."""

    def run_evaluation(self) -> Evaluation:
        """Evaluates the policy now."""
        self.before_evaluation()
        result = self.evaluate()
        self.record_evaluation(result, (self.updates, self.env_steps))
        return result

    def record_evaluation(self, result: Evaluation, moment: tuple[int, int]) -> None:
        """Keeps the point of the curve at ``moment`` (updates, environment steps), logs it, and tells the callbacks."""
        clock = moment[self.clock_name == "env_steps"]
        self.curve.append([clock, result.return_mean, result.score])
        row = {"eval_env_steps": float(self.eval_env_steps), "return_mean": result.return_mean}
        self.log_now(row if result.score is None else {**row, "score": result.score}, moment)
        self.show({"score": result.value})  # the mean return, where no reference score is known
        self.tell("on_evaluation", result)

    def tell(self, hook: str, *args: Any) -> None:
        """Calls one of the hooks of :class:`o2o_lightning.callbacks.hooks.PhaseCallback`; bars show what it brought."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        for callback in sorted(callbacks, key=lambda callback: isinstance(callback, ProgressBar)):
            if isinstance(callback, PhaseCallback):
                getattr(callback, hook)(self.trainer, self, *args)

    def others_go_on(self) -> None:
        """Lets other seeds go on, while another process is at work for this one."""
        if self.lane is not None:
            self.lane.pause()

    def end_evaluations(self) -> None:
        """Ends the process that made them."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _beside(self) -> bool:
        """Whether the seeds of this run are evaluated at the same time, each in a process of its own."""
        return self.lane is not None and self.data.env_process

    def _away(self, policy: Policy, make: Callable[[], Evaluator] | None) -> Evaluation:
        if self._worker is None:
            self._worker = EvaluationWorker(self.data.evaluator())
        self._worker.submit(Snapshot.of(policy, self.normalizer), make)
        self.others_go_on()
        return self._worker.result()

    def _player(self, policy: Policy) -> Player:
        """The policy, ready for episodes; off a GPU, which would be asked for its weights at every step."""
        if self.device.type == "cpu":
            return player_of(policy, self.normalizer)
        return Snapshot.of(policy, self.normalizer).player()

    def _counted(self, evaluation: Evaluation) -> Evaluation:
        self.eval_env_steps += evaluation.env_steps
        return evaluation
