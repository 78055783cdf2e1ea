"""``o2o policy import``: a policy of another library as a checkpoint, with what shows that it is the same policy."""

import argparse
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from o2o_lightning.checkpoint.handover import KEY, Handover
from o2o_lightning.checkpoint.io import TEMPORARY, save_atomically, write_json
from o2o_lightning.cli.show import refuse_existing, say
from o2o_lightning.data.raw import RawDataset, Said
from o2o_lightning.data.spec import load_raw
from o2o_lightning.envs.episodes import Evaluator
from o2o_lightning.envs.make import EnvSpec, env_spec, foreign_id
from o2o_lightning.envs.scores import reference_scores
from o2o_lightning.errors import UserError
from o2o_lightning.limits import read_json
from o2o_lightning.machine import library_versions
from o2o_lightning.nn.actor import FloatArray
from o2o_lightning.policies.exploration import settle
from o2o_lightning.policies.parity import apart, by_float64, tolerance
from o2o_lightning.policies.proof import Proof, by_program, by_recording, by_reference
from o2o_lightning.policies.read import describe, read_policy
from o2o_lightning.policies.remaining_time import hold_time
from o2o_lightning.policies.source import ImportedPolicy, reading
from o2o_lightning.ranges import check_ranges


def import_policy(arguments: argparse.Namespace, format: str, reason: str) -> int:
    """Imports a policy whose format is no black box; reports parity and score."""
    if arguments.rest:
        raise UserError(f"o2o policy import: '{arguments.rest[0]}' is no option of it. See `o2o policy import -h`.")
    check_ranges("", {name: getattr(arguments, name) for name in ("states", "episodes", "seed")})
    policy = read(arguments, format)
    target, summary = _places(arguments)
    env_id = arguments.env_id or foreign_id(policy.env_id, f"policy {policy.file}")
    spec = arguments.dataset or (arguments.file if format == "d4rl" else None)
    raw = None if spec is None else load_raw(spec, said=Said(arguments.env_id, layout=policy.layout))
    layout, kwargs = policy.layout, arguments.env_kwargs or {}
    if policy.time_column is not None:
        _hold_missing_time(policy, raw, env_id, kwargs)
    if raw is not None:
        _check_sizes(policy, f"dataset {raw.source}", (raw.observations.shape[1], raw.actions.shape[1]))
        env_id, layout = env_id or foreign_id(raw.env_id, f"dataset {raw.source}"), layout or raw.layout
        if raw.layout and layout and raw.layout != layout:
            raise UserError(
                f"policy {policy.file}: it takes the observation's parts as {','.join(layout)}, dataset {raw.source} "
                f"has them as {','.join(raw.layout)}. Pass a dataset of that order."
            )
    env = env_spec(env_id, policy.observation_dim, layout, kwargs) if env_id is not None else None
    if env is not None:
        _check_sizes(policy, f"environment {env_id}", (env.observation_dim, env.action_dim))
        _check_reach(policy, env, arguments.actions)
    linear = policy.family == "gaussian" and policy.mean_kind == "linear" and policy.bounds is None
    if arguments.actions is not None and not linear and policy.reach is None and arguments.reference is None:
        raise UserError(
            f"--actions: it does not apply to {policy.file}, whose actions are known to be in "
            f"{'[-1, 1]' if policy.bounds is None else 'its own bounds'}. Leave it out."
        )
    if linear and env is not None and arguments.actions != "unit":
        _take_bounds(policy, env)
    report = _compare(arguments, policy, env, raw)
    found = facts_of(policy, format, reason) | {"env_id": env_id, "checkpoint": str(target)}
    facts = {"phase": "import", **found, **report}
    _write(target, _checkpoint(policy, env, report.get("score"), raw, layout), summary, facts)
    _print_import(policy, facts, reason)
    return 0


def read(arguments: argparse.Namespace, format: str) -> ImportedPolicy:
    """The policy that the command line names."""
    options = ("normalizer", "family", "mean", "activation", "time_feature")
    layout = tuple(name for name in (arguments.layout or "").split(",") if name)
    return read_policy(arguments.file, format, **{name: getattr(arguments, name) for name in options}, layout=layout)


def _places(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """Where the checkpoint and its report go."""
    if arguments.out is None and arguments.run_dir is None:
        raise UserError("o2o policy import: no place for the result. Pass --run_dir DIR or --out FILE.ckpt.")
    target = Path(arguments.out or Path(arguments.run_dir, "import", "checkpoints", "last.ckpt"))
    if target.suffix == ".json":
        raise UserError(f"--out {target}: the report goes there. Pass --out FILE.ckpt.")
    report = target.with_suffix(".json") if arguments.out else target.parent.parent / "summary.json"
    _refuse_finished(target, report)
    return target, report


def _refuse_finished(target: Path, report: Path) -> None:
    """The checkpoint comes last: a report of ours without it is of an import that was killed, and is made again."""
    unfinished = False
    if report.is_file() and not target.exists():
        with contextlib.suppress(ValueError, LookupError, TypeError):
            found = read_json(report.read_text())
            unfinished = (found["phase"], found["checkpoint"]) == ("import", str(target))
    refuse_existing("--run_dir or --out", target, *(() if unfinished else (report,)))


def _write(target: Path, checkpoint: dict[str, Any], report: Path, facts: dict[str, Any]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock := target.with_name(f".{target.name}.lock")):
        _refuse_finished(target, report)  # another import may have come first
        for leftover in target.parent.glob(f".{target.name}.*{TEMPORARY}"):
            leftover.unlink()
        write_json(report, facts)
        save_atomically(target, checkpoint)
        lock.unlink()


def _check_sizes(policy: ImportedPolicy, name: str, sizes: tuple[int, int]) -> None:
    own = (policy.observation_dim, policy.action_dim)
    if sizes != own:
        raise UserError(
            f"policy {policy.file}: it takes {own[0]} observation values and gives {own[1]} actions, {name} has "
            f"{sizes[0]} and {sizes[1]}. Pass the --dataset and --env_id it was trained for."
        )


def _hold_missing_time(
    policy: ImportedPolicy, raw: RawDataset | None, env_id: str | None, kwargs: dict[str, Any]
) -> None:
    """Holds the remaining time where the dataset, or else the environment, does not give it."""
    seen = policy.observation_dim
    if raw is not None:
        seen = raw.observations.shape[1]
    elif env_id is not None:
        seen = env_spec(env_id, None, policy.layout, kwargs).observation_dim
    if seen == policy.observation_dim - 1:
        hold_time(policy, None)
    else:
        policy.notes["time"] = f"its input {policy.time_column} is the remaining time (--time_feature VALUE holds it)"


def _checkpoint(
    policy: ImportedPolicy,
    env: EnvSpec | None,
    score: dict[str, Any] | None,
    raw: RawDataset | None,
    layout: tuple[str, ...],
) -> dict[str, Any]:
    """What every phase accepts where it accepts an offline policy: tensors and primitives only."""
    actor = policy.build_actor()
    handover = Handover(
        phase="import",
        algorithm=policy.algorithm,
        actor=actor.spec.to_dict(),
        critic=None,
        normalizer=policy.build_normalizer().state(),
        env_id=None if env is None else env.env_id,
        env_kwargs={} if env is None else dict(env.kwargs),
        manifest={} if raw is None else {"source": raw.source, "sha256": raw.sha256},
        scores={} if score is None else {"offline": score["score"]},
        returns={} if score is None else {"offline": score["return_mean"]},
        versions=library_versions(),
        layout=list(layout if env is None else env.layout),
    )
    state = {f"agent.actor.{name}": value for name, value in actor.state_dict().items()}
    return {KEY: handover.pack(), "state_dict": state}


def _check_reach(policy: ImportedPolicy, env: EnvSpec, units: str | None) -> None:
    """Refuses a policy of another range of actions; one of ``[-1, 1]`` may act behind a wrapper that scales them."""
    if policy.reach is None or np.allclose(policy.reach, (env.action_low, env.action_high), rtol=1e-3):
        return
    scaled = np.allclose(np.abs(policy.reach), 1.0)
    if not (scaled and units == "unit"):
        remedy = ", or --actions unit if a wrapper scaled them" if scaled else ""
        raise UserError(
            f"policy {policy.file}: its actions are scaled to {policy.reach[0]}…{policy.reach[1]}, environment "
            f"{env.env_id} takes {env.action_low}…{env.action_high}. Pass the --env_id it was trained for{remedy}."
        )


def _take_bounds(policy: ImportedPolicy, env: EnvSpec) -> None:
    low, high = env.action_low.astype(np.float64), env.action_high.astype(np.float64)
    if np.any(low != -1.0) or np.any(high != 1.0):
        policy.bounds = (low, high)
        policy.notes["bounds"] = (
            f"its actions are taken to be in the units of {env.env_id} (--actions unit: in [-1, 1])"
        )


def _compare(
    arguments: argparse.Namespace, policy: ImportedPolicy, env: EnvSpec | None, raw: RawDataset | None
) -> dict[str, Any]:
    states, where = _states(arguments, policy, env, raw)
    settle(policy, states, f"{len(states):,} states ({where})")
    actor, normalizer = policy.build_actor(), policy.build_normalizer()

    def act(observation: FloatArray) -> FloatArray:
        return actor.act(normalizer.numpy(observation))

    actions = act(states)
    rounded = tolerance(actor, actions, by_float64(actor, normalizer, states))
    parity = apart(actions, policy.actions(states), rounded)
    proof: Proof | None
    if arguments.reference is not None:
        with reading(policy.file):
            proof = by_reference(policy, arguments.reference, env, arguments.actions)
    elif policy.program is not None:
        with reading(policy.file):
            proof = by_program(policy, states, env, arguments.actions)
    else:
        proof = None if raw is None else by_recording(policy, raw, env, slice(0, arguments.states))
    report: dict[str, Any] = {
        "states_from": where, "parity": parity, "proof": None if proof is None else proof._asdict(),
        "verdict": _verdict(policy, parity, proof),
    }  # fmt: skip
    if env is not None and arguments.episodes > 0:
        reference, episodes = reference_scores(env.env_id), (arguments.episodes, arguments.seed)
        found = Evaluator(env.env_id, env.observation_dim, *episodes, reference, env.layout, env.kwargs).run(act)
        report["score"] = {
            "return_mean": found.return_mean, "return_std": float(np.std(found.returns)), "score": found.score,
            "episodes": len(found.returns), "returns": found.returns,
        }  # fmt: skip
    return report


def _verdict(policy: ImportedPolicy, parity: dict[str, Any], proof: Proof | None) -> str:
    """What was shown, in one line: by the source's own results, or only that its tensors are built as read."""
    states, largest = f"{parity['states']:,} states", parity["largest"]
    if not parity["same"]:
        built = (
            f"differs from its tensors: actions are up to {largest:.2g} apart, RMSE {parity['rmse']:.2g} over {states},"
            f" most in dimension {parity['dimension']} of state {parity['state']}"
        )
    else:
        built = f"built as it was read, to {largest:.1g} over {states}"
    altered = "" if policy.altered is None else f"with {policy.altered}: "
    if proof is None:
        return f"{altered}{built}; not compared with the source's own actions: pass --reference FILE.npz"
    same = f"same {proof.what} as {proof.against}, to {proof.largest:.1g} over {proof.rows:,} rows"
    return f"{altered}{same}; {built}"


def _states(
    arguments: argparse.Namespace, policy: ImportedPolicy, env: EnvSpec | None, raw: RawDataset | None
) -> tuple[FloatArray, str]:
    count = arguments.states
    if raw is not None:
        rows = np.unique(np.linspace(0, len(raw) - 1, min(count, len(raw))).astype(int))
        return np.asarray(raw.observations[slice(None)], np.float32)[rows], raw.source
    generator = np.random.default_rng(0)
    if env is None:
        normal = policy.build_normalizer()
        noise = generator.standard_normal((count, policy.observation_dim), dtype=np.float32)
        return noise * (normal.std.numpy() + normal.eps) + normal.mean.numpy(), "random observations"
    simulator = env.make()
    found: list[FloatArray] = []
    observation, _ = simulator.reset(seed=arguments.seed)
    while len(found) < count:
        found.append(observation)
        action = policy.actions(observation[None])[0] + 0.1 * generator.standard_normal(policy.action_dim)
        observation, _, terminated, truncated, _ = simulator.step(action.astype(np.float32))
        if terminated or truncated:
            observation, _ = simulator.reset()
    simulator.close()
    return np.stack(found), f"{env.env_id}, acted on by the policy"


def facts_of(policy: ImportedPolicy, format: str, reason: str) -> dict[str, Any]:
    """What was found in the file, as JSON primitives."""
    return {
        "file": policy.file,
        "format": format,
        "recognised_by": reason,
        "algorithm": policy.algorithm,
        **policy.spec.to_dict(),
        "normalizer": describe(policy.normalizer),
        "action_bounds": None if policy.bounds is None else [bound.tolist() for bound in policy.bounds],
        "env_id": policy.env_id,
        "notes": [*policy.notes.values()],
    }


def _print_import(policy: ImportedPolicy, facts: dict[str, Any], reason: str) -> None:
    hidden = f"{'-'.join(map(str, facts['hidden']))} {policy.activation}" if facts["hidden"] else "no hidden layer"
    say(
        f"{policy.file}: {policy.format} ({reason}): {policy.algorithm}, {policy.family}, {facts['observation_dim']} "
        f"observation values, {hidden}, {facts['action_dim']} actions; normalisation: {facts['normalizer']}"
    )
    for note in policy.notes.values():
        say(f"note: {note}")
    say(f"parity on {facts['parity']['states']:,} states ({facts['states_from']}): {facts['verdict']}")
    if (score := facts.get("score")) is not None:
        shown = "" if score["score"] is None else f", score {score['score']:.1f}"
        spread = f"{score['return_mean']:.1f} ± {score['return_std']:.1f}"
        say(f"evaluated in {facts['env_id']}: return {spread}{shown} ({score['episodes']} episodes)")
    say(f"written: {facts['checkpoint']}; go on with `o2o fit --phase reevaluate --model.init_from` that file")
