"""Which phases a run has: those of the method or of ``phases=``, those that ``phases=auto`` keeps, and cloning.

``auto`` asks which phases an offline policy needs before it goes online (paper, appendix B; docs/sources.md). Cloning
comes first where the family of the policy is not the one that the online algorithm needs.
"""

from dataclasses import dataclass, replace

import yaml

from o2o_lightning.checkpoint.handover import POLICIES, Handover, read_handover
from o2o_lightning.cli.command import PHASES, Command
from o2o_lightning.cli.compose import compose, groups
from o2o_lightning.cli.models import method_of
from o2o_lightning.errors import UserError
from o2o_lightning.methods.sac import SACCritic
from o2o_lightning.nn.actors import ACTORS

AUTO = "auto"
# What an offline critic is good for online. Those that are named in neither belong to another policy than their own.
REGULARISED = ("cql",)  # pessimistic, but aligned with the policy
EXPLICIT = ("td3_bc", "awac")  # values the policy itself, without entropy, but was not all that the policy climbed
NAMES = {"td3_bc": "TD3+BC", "bc10": "10 %-BC"}
FAMILIES = {
    "deterministic": "a deterministic one",
    "gaussian": "a Gaussian",
    "gaussian_head": "a Gaussian with a σ for each state",
    "squashed_gaussian": "a squashed Gaussian",
    "decision_transformer": "a Decision Transformer",
    "online_decision_transformer": "an Online Decision Transformer",
    "mixture": "a mixture of several",
    "balanced": "a family of Gaussians with its balance",
}


@dataclass(frozen=True)
class Offline:
    """What there is to start from."""

    origin: str  # the algorithm that made the policy, as checkpoints name it
    critic: bool  # whether an action-value critic comes with it
    cloned: bool = False  # whether the policy is, or will be, a clone: another one than the critic's
    same_rewards: bool = True  # whether the critic learned the rewards that the online algorithm learns


def phases_of(command: Command) -> tuple[list[str], list[str]]:
    """The phases that the command runs, in order, and lines that say why, where it was not told."""
    phases, choice = [command.phase], None
    if command.phase == "all":
        phases = compose("offline", command)["phases"]
        if phases == AUTO:
            phases, choice = chosen_phases(command)
        elif not isinstance(phases, list) or not phases or len({*phases}) < len(phases) or not {*phases} <= {*PHASES}:
            raise UserError(f"phases={phases}: a list of {', '.join(PHASES)} is needed, each at most once, or auto.")
    phases, cloning = with_cloning(command, phases)
    return phases, [note for note in (choice, cloning) if note is not None]


def needed(offline: Offline, reads_critic: bool, entropy: bool = False) -> tuple[set[str], str]:
    """The phases, of re-evaluation and alignment, that come before fine-tuning, and why.

    ``reads_critic`` is false of PPO, which has no use for an action-value critic; ``entropy`` tells whether the online
    critics' target has an entropy term.
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
    if offline.origin in EXPLICIT and entropy:
        return everything, f"{name}'s critic learned from a target without the online one's entropy term"
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
    command = command.without("phases")
    phases = compose("offline", command)["phases"]
    if phases == AUTO:
        raise UserError("phases: auto in a configuration file. Write `phases=auto` on the command line.")
    source = None if command.start is None else read_handover(command.start)
    if source is not None:
        done = "offline" if source.phase in POLICIES else source.phase
        phases = [phase for phase in phases if PHASES.index(phase) > PHASES.index(done)]
        if source.phase not in POLICIES:
            return phases, _choice(phases, f"the checkpoint is of phase '{source.phase}'")
    elif "offline" not in phases:
        return phases, _choice(phases, "there is no offline policy to prepare")
    offline = _offline(command, source)
    cloned = offline.cloned or "clone" in with_cloning(command, phases)[0]
    online = method_of(compose("online", command)["model"])
    wanted, why = needed(replace(offline, cloned=cloned), online.needs_critic, issubclass(online, SACCritic))
    phases = [phase for phase in phases if phase in ("offline", "online", *wanted)]
    return phases, _choice(with_cloning(command, phases)[0], f"{why} (paper, appendix B)")


def _offline(command: Command, source: Handover | None) -> Offline:
    """What the checkpoint holds, or else what the offline phase will leave."""
    if source is None:
        made = method_of(compose("offline", command)["model"])
        origin, critic, cloned = made.name, made.makes_critic, False
    else:
        origin, critic, cloned = str(source.origin), source.critic is not None, source.phase == "clone"
        if origin in groups()["offline"]:  # the rewards are those of the method that made it
            command = command.without("offline")
            command.overrides.append(f"offline={origin}")
    learned, online = (compose(phase, command)["data"] for phase in ("offline", "online"))
    return Offline(origin, critic, cloned, all(learned[key] == online[key] for key in ("reward_scale", "reward_shift")))


def student_family(command: Command, phases: list[str]) -> str | None:
    """The family that the cloning phase makes for the phase behind it; None where there is none, or it takes any."""
    after = phases[phases.index("clone") + 1 :]
    model = compose(after[0], command)["model"] if after else {}
    return method_of(model).policy_family(model.get("init_args") or {}) if "class_path" in model else None


def _choice(phases: list[str], why: str) -> str:
    return f"phases: {', '.join(phases)}: {why}"


def with_cloning(command: Command, phases: list[str]) -> tuple[list[str], str | None]:
    """``phases`` with ``clone`` before the first one whose policy would be of another family, and a line that says so.

    The phase ``clone`` itself is composed like any other; its student's family is the key ``family``, which the
    configuration of each online algorithm sets.
    """
    if "clone" in phases:
        return phases, None
    kind = None if command.start is None else str(read_handover(command.start).actor["kind"])
    model = [name for name in command.values if name.startswith("model.")]
    typed = {name.removeprefix("model."): yaml.safe_load(command.values[name]) for name in model}
    for i, phase in enumerate(phases):
        model = compose(phase, command)["model"]
        if "class_path" not in model:
            continue
        learner = method_of(model)
        wanted = learner.policy_family({**(model.get("init_args") or {}), **typed})
        if wanted is not None and wanted not in FAMILIES:
            names = ", ".join(name for name in FAMILIES if name in ACTORS)
            raise UserError(f"family={wanted}: one of {names} is needed.")
        if phase == "offline":
            kind = wanted
        elif kind is not None and wanted is not None and kind != wanted:
            if wanted not in ACTORS:
                raise UserError(
                    f"online={learner.name}: it goes on from {FAMILIES[wanted]}, which no other policy is cloned into. "
                    f"Leave `offline=` and --model.init_from out, or choose another online method."
                )
            has = kind if kind == "deterministic" else FAMILIES[kind]
            loss = "mean square" if wanted == "deterministic" else "Eq. 52"
            most = compose("clone", command)["trainer"]["max_steps"]
            return [*phases[:i], "clone", *phases[i:]], (
                f"clone: the offline policy is {has}, {learner.name.upper()} needs {FAMILIES[wanted]}: "
                f"cloning it first ({loss}), at most {most:,} updates (steps.clone=N)"
            )
    return phases, None
