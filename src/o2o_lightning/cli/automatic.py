"""``phases=auto``: which phases an offline policy needs before it goes online (paper, appendix B; docs/sources.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from o2o_lightning.checkpoint.handover import POLICIES, Handover, read_handover
from o2o_lightning.cli.cloning import class_of, with_cloning
from o2o_lightning.cli.compose import PHASES, Command, compose, groups
from o2o_lightning.errors import UserError

AUTO = "auto"
# What an offline critic is good for online. Those that are named in neither belong to another policy than their own.
REGULARISED = ("cql",)  # pessimistic, but aligned with the policy
EXPLICIT = ("td3_bc", "awac")  # values the policy itself, as online, but was not all that the policy climbed
NAMES = {"td3_bc": "TD3+BC", "bc10": "10 %-BC"}


@dataclass(frozen=True)
class Offline:
    """What there is to start from.

    Attributes:
        origin: the algorithm that made the policy, as checkpoints name it.
        critic: whether an action-value critic comes with it.
        cloned: whether the policy is, or will be, a clone: another one than the critic's.
        same_rewards: whether the critic learned the rewards that the online algorithm learns.
    """

    origin: str
    critic: bool
    cloned: bool = False
    same_rewards: bool = True


def needed(offline: Offline, reads_critic: bool) -> tuple[set[str], str]:
    """The phases, of re-evaluation and alignment, that come before fine-tuning, and why.

    ``reads_critic`` is false of PPO, which has no use for an action-value critic.
    """
    name, everything = NAMES.get(offline.origin, offline.origin.upper()), {"reevaluate", "align"}
    if not reads_critic:
        return everything, "PPO's state value is fitted whatever the source"
    if not offline.critic:
        return everything, f"{name} hands on a policy without a critic"
    if offline.origin not in (*REGULARISED, *EXPLICIT):
        return everything, f"{name}'s critic values another policy than its own"
    if not offline.same_rewards:
        return everything, f"{name}'s critic learned from other rewards than the online algorithm does"
    if offline.origin in EXPLICIT:
        return {"align"}, f"{name}'s critic is evaluated as online, so re-evaluation is left out"
    if offline.cloned:
        return everything, f"{name}'s critic is aligned with the policy before cloning, not with the clone"
    return set(), f"{name}'s critic and policy are aligned already, so only the constraint is needed"


def chosen_phases(command: Command) -> tuple[list[str], str]:
    """The phases of ``--phase all phases=auto``, and a line that says so.

    Starts from what the method or the experiment would run, so that an ablation stays one. With ``--model.init_from``,
    the origin that the checkpoint records decides instead of the option ``offline``.

    Raises:
        UserError: a checkpoint that cannot be read, or ``auto`` from a file rather than from the command line.
    """
    plain = replace(command, overrides=[token for token in command.overrides if not token.startswith("phases=")])
    phases = compose("offline", plain)["phases"]
    if phases == AUTO:
        raise UserError("phases: auto in a configuration file. Write `phases=auto` on the command line.")
    if command.start is not None:
        source = read_handover(command.start)
        done = "offline" if source.phase in POLICIES else source.phase
        phases = [phase for phase in phases if PHASES.index(phase) > PHASES.index(done)]
        if source.phase not in POLICIES:
            return phases, _note(phases, f"the checkpoint is of phase '{source.phase}'")
        offline = _from_checkpoint(source, plain)
    elif "offline" in phases:
        offline = _from_dataset(plain)
    else:
        return phases, _note(phases, "there is no offline policy to prepare")
    cloned = offline.cloned or "clone" in with_cloning(plain, phases)[0]
    online = class_of(compose("online", plain)["model"]["class_path"])
    wanted, why = needed(replace(offline, cloned=cloned), online.needs_critic)
    phases = [phase for phase in phases if phase in ("offline", "online", *wanted)]
    return phases, _note(with_cloning(plain, phases)[0], f"{why} (paper, appendix B)")


def _from_dataset(command: Command) -> Offline:
    composed = compose("offline", command)
    made = class_of(composed["model"]["class_path"])
    return Offline(made.algorithm, made.makes_critic, same_rewards=_same_rewards(command))


def _from_checkpoint(source: Handover, command: Command) -> Offline:
    origin = str(source.origin)
    if origin in groups()["offline"]:
        others = [token for token in command.overrides if not token.startswith("offline=")]
        command = replace(command, overrides=[*others, f"offline={origin}"])
    return Offline(origin, source.critic is not None, source.phase == "clone", _same_rewards(command))


def _same_rewards(command: Command) -> bool:
    maps = [compose(phase, command)["data"] for phase in ("offline", "online")]
    return all(maps[0][key] == maps[1][key] for key in ("reward_scale", "reward_shift"))


def _note(phases: list[str], why: str) -> str:
    return f"phases: {', '.join(phases)}: {why}"
