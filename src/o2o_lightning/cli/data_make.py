"""``o2o data make``: a first dataset from an environment alone, by D4RL's protocol."""

import argparse
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

from o2o_lightning.callbacks.progress import transitions
from o2o_lightning.callbacks.recorder import read_record
from o2o_lightning.checkpoint.handover import Handover, read_handover
from o2o_lightning.cli.data import LEVELS, show
from o2o_lightning.cli.data_train import RESERVED, Goal, Trained, train
from o2o_lightning.cli.run import say
from o2o_lightning.data.hdf5 import file_sha256
from o2o_lightning.envs.make import EnvSpec, env_spec, foreign_id, plain
from o2o_lightning.envs.scores import reference_scores
from o2o_lightning.errors import Failure, Interrupted, UserError, at_least
from o2o_lightning.machine import library_versions
from o2o_lightning.policies.d4rl_group import policy_group
from o2o_lightning.recording.behaviour import Behaviour, PolicyBehaviour, UniformBehaviour
from o2o_lightning.recording.making import Rollouts, replay
from o2o_lightning.recording.working import Working
from o2o_lightning.recording.writer import Block

ENDS = "a step may be a terminal and a timeout in one; the last (cut) episode is flagged as a timeout"
ROLLOUTS = "rollouts"
MEDIUM_SCORE = 100 / 3  # D4RL: about a third of the expert


def make(arguments: argparse.Namespace) -> int:
    """Runs ``o2o data make``."""
    _check(arguments)
    source = None if arguments.policy is None else read_handover(arguments.policy)
    env = _environment(arguments, source)
    goal = _goal(arguments, env.env_id)
    level = arguments.level or "policy"
    name = env.env_id.replace("/", "-").replace(":", "-").lower()
    named = f"{name}/{level}-v0" if arguments.format == "minari" else f"{name}-{level}.hdf5"
    working = Working(arguments.output or named, arguments.format)
    request = {
        "env_id": env.env_id, "level": level, "transitions": arguments.transitions, "seed": arguments.seed,
        "goal": goal and list(goal), "policy": arguments.policy and file_sha256(Path(arguments.policy)),
        "run_dir": arguments.run_dir, "device": arguments.device, "rest": arguments.rest,
        "env_kwargs": dict(env.kwargs),
    }  # fmt: skip
    working.open(request)
    try:
        if not working.finished:
            _fill(arguments, env, source, goal, working)
        working.finish()
    except (Interrupted, KeyboardInterrupt) as stop:
        number = signal.Signals(stop.exit_code - 128 if isinstance(stop, Interrupted) else signal.SIGINT)
        raise Interrupted(f"{number.name}: stopped. Give the same command again to go on.", number) from stop
    except Failure as error:
        hint = " Here the same `o2o data make` does." if "o2o resume" in str(error) else ""
        raise Failure(f"{error}{hint}") from error
    finally:
        working.release()
    show(argparse.Namespace(spec=working.spec, env_id=env.env_id, env_kwargs=env.kwargs, json=arguments.json))
    if not arguments.json and working.sha256 is not None:
        print(f"sha256 {working.sha256}  {working.output}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Options that exclude one another, or are of no use."""
    trains = arguments.policy is None and arguments.level != "random"
    if arguments.level is None and arguments.policy is None:
        raise UserError(f"o2o data make: no level. Pass --level {', '.join(LEVELS)}.")
    if arguments.policy is not None and arguments.level in ("random", "medium-replay"):
        raise UserError(f"--policy: level {arguments.level} is not rolled out from a policy. Leave one of them out.")
    if arguments.transitions is None and arguments.level != "medium-replay":
        raise UserError("o2o data make: no number of rows. Pass --transitions N.")
    for option, least in (("transitions", 1), ("train_steps", 1), ("seed", 0)):
        value = getattr(arguments, option)
        if value is not None:
            at_least(f"--{option}", value, least)
    if arguments.stop_score is not None and arguments.stop_return is not None:
        raise UserError("--stop_score and --stop_return: one goal is enough. Leave one of them out.")
    typed = [f"--{name}" for name in ("stop_score", "stop_return", "train_steps", "run_dir", "device")
             if getattr(arguments, name) is not None]  # fmt: skip
    typed += arguments.rest
    if typed and not trains:
        raise UserError(f"{typed[0]}: nothing is trained here. Leave it out.")
    for token in arguments.rest:
        name = token.partition("=")[0].lstrip("+-").replace(".init_args.", ".")
        if name.removeprefix("online.") in RESERVED:
            raise UserError(f"{token}: `o2o data make` sets it itself. See `o2o data make -h` for its own options.")


def _environment(arguments: argparse.Namespace, source: Handover | None) -> EnvSpec:
    env_id: str | None = arguments.env_id
    if env_id is None and source is not None:
        env_id = foreign_id(source.env_id, f"checkpoint {arguments.policy}")
    if env_id is None:
        raise UserError("o2o data make: no environment. Pass --env ID, a Gymnasium environment.")
    if source is None:
        return env_spec(env_id, kwargs=arguments.env_kwargs or {})
    kwargs = source.kwargs_in(env_id) if arguments.env_kwargs is None else arguments.env_kwargs
    env = env_spec(env_id, source.actor["observation_dim"], source.layout, kwargs)
    source.check_policy(None, (env.observation_dim, env.action_dim), "o2o data make")
    return env


def _goal(arguments: argparse.Namespace, env_id: str) -> Goal | None:
    """What ends the training early; None for its whole budget."""
    if arguments.stop_return is not None:
        return Goal(arguments.stop_return, "return")
    by_level = arguments.level in ("medium", "medium-replay") and arguments.policy is None
    score = MEDIUM_SCORE if arguments.stop_score is None and by_level else arguments.stop_score
    if score is not None and reference_scores(env_id) is None:
        raise UserError(
            f"environment {env_id}: there is no reference score for it, so no score can say when to stop. Pass "
            "--stop_return R, the mean return at which the policy is good enough; `--level random` shows chance."
        )
    return None if score is None else Goal(score, "score")


def _fill(
    arguments: argparse.Namespace, env: EnvSpec, source: Handover | None, goal: Goal | None, working: Working
) -> None:
    """Trains if need be, records, and writes the dataset into the working directory."""
    trained: Trained | None = None
    facts: dict[str, Any] = {}
    if source is None and arguments.level != "random":
        folder = Path(arguments.run_dir).absolute() if arguments.run_dir else working.path / "training"
        forget = partial(shutil.rmtree, working.path / ROLLOUTS, ignore_errors=True)  # of a policy that learns on
        trained = train(folder, arguments, env, goal, forget)
        source = read_handover(trained.checkpoint)
        env = env_spec(env.env_id, source.actor["observation_dim"], source.layout, env.kwargs)
        facts = trained.facts()
    elif arguments.policy is not None:
        facts = {"policy_file": Path(arguments.policy).name, "policy_sha256": file_sha256(Path(arguments.policy))}
    if arguments.rest:
        facts["training_options"] = " ".join(arguments.rest)
    facts = _provenance(arguments.level or "policy", arguments.seed, env, source, facts)
    group: dict[str, Any] = {}
    behaviour: Behaviour = UniformBehaviour(env.action_dim)
    if source is not None:
        actor, normalizer = source.build_actor(), source.build_normalizer()
        group, behaviour = policy_group(actor, normalizer), PolicyBehaviour(actor, normalizer)
    if arguments.level == "medium-replay":
        assert trained is not None
        block = _replay(trained, env, arguments.transitions)
        working.write(len(block["rewards"]), [block], env, facts, group)
        return
    rollouts = Rollouts(working.path / ROLLOUTS, env.make, behaviour, arguments.seed)
    with transitions(arguments.transitions) as progress:
        rollouts.record(arguments.transitions, progress)
    working.write(arguments.transitions, rollouts.blocks(), env, facts, group)


def _replay(trained: Trained, env: EnvSpec, newest: int | None) -> Block:
    state = trained.buffer()
    size = len(state["rows"]["reward"])
    if newest is not None and newest > size:
        say(f"the replay has {size:,} transitions, fewer than --transitions {newest}: all of them are written")
    live = env.make()
    live.reset(seed=0)
    record = read_record(trained.record, live, trained.env_steps)
    live.close()
    return replay(state, record, env.action_low, env.action_high, size if newest is None else newest)


def _provenance(level: str, seed: int, env: EnvSpec, source: Handover | None, facts: dict[str, Any]) -> dict[str, Any]:
    """The group ``metadata``, texts and numbers; ``facts`` of the training, or of the policy's file."""
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    metadata = {"env_id": env.env_id, "level": level, "seed": seed, "versions": versions, **facts}
    metadata |= {"action_units": "native", "terminals": "terminated"}
    if env.layout:
        metadata["obs_layout"] = ",".join(env.layout)
    if env.kwargs:
        metadata["env_kwargs"] = plain(env.kwargs)
    if source is None:
        origin = "uniformly random actions, recorded by o2o-lightning"
        protocol = f"rollout, at most {env.horizon} steps an episode; {ENDS}"
        return {"algorithm": "random", "source": origin, "protocol": protocol, **metadata}
    kind = "deterministic" if source.actor["kind"] == "deterministic" else "stochastic"
    what = f"{kind} rollout of one policy, at most {env.horizon} steps an episode"
    if level == "medium-replay":
        what = "replay buffer of the run until the policy reached its level, oldest transition first"
    origin = f"phase {source.phase} of o2o-lightning, in {source.env_id or 'an environment unknown'}"
    if "training_steps" in facts:
        origin = "from scratch, trained for this dataset by o2o-lightning"
    name, protocol = source.algorithm.upper(), f"{what}; next_observations stored; {ENDS}"
    return {"algorithm": name, "source": f"{name}, {origin}", "protocol": protocol, **metadata}
