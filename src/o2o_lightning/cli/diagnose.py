"""``o2o diagnose``: how far policy, critic and data are apart, and what fine-tuning will make of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from o2o_lightning.checkpoint.handover import Handover, read_handover
from o2o_lightning.cli.arguments import Parser
from o2o_lightning.cli.command import Command, split
from o2o_lightning.cli.compose import compose, lightning_config
from o2o_lightning.cli.show import refuse_existing, show_facts
from o2o_lightning.errors import UserError

if TYPE_CHECKING:
    from o2o_lightning.cli.lightning import Built

DESCRIPTION = """\
Plays the policy, holds its critic against what it earns, and rehearses: it makes the updates of direct fine-tuning on
the dataset alone, and plays again. Of a run, what fine-tuning would start from: its last phase before going online.
Other options are those of `o2o fit --phase online`: --data.dataset, --data.env_id, --data.eval_episodes, online=….
"""
DIRECT = {"deterministic": "td3", "squashed_gaussian": "sac"}  # the plain rule of each family that learns from data
BEFORE = ("align", "reevaluate", "clone", "import", "offline")
REHEARSE = "o2o_lightning.phases.rehearse.Rehearse"
DATA = "o2o_lightning.data.module.OfflineData"


def main(argv: list[str]) -> int:
    """Runs ``o2o diagnose``."""
    parser = Parser("o2o diagnose", description=DESCRIPTION)
    parser.add_argument("target", metavar="CKPT|RUN_DIR", type=Path, help="a checkpoint of any phase, or a run")
    parser.add_argument("--updates", type=int, default=1000, help="of the rehearsal (default: 1000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to FILE")
    arguments, rest = parser.parse_known_args(argv)
    if arguments.json is not None:
        refuse_existing("--json", arguments.json)
    if arguments.updates < 1:
        raise UserError(f"--updates {arguments.updates}: at least 1 is needed.")
    path = checkpoint_of(arguments.target)
    facts = diagnose(path, rest, arguments.updates)
    _show(facts)
    if arguments.json is not None:
        from o2o_lightning.checkpoint.io import write_json

        write_json(arguments.json, facts)
    return 0


def checkpoint_of(target: Path) -> Path:
    """The checkpoint itself, or of a run the one that fine-tuning would start from."""
    if not target.is_dir():
        return target
    found = (target / phase / "checkpoints" / "last.ckpt" for phase in BEFORE)
    path = next((path for path in found if path.exists()), None)
    if path is None:
        raise UserError(f"{target}: no phase before going online has left a checkpoint in it. Pass a checkpoint.")
    return path


def diagnose(path: Path, options: list[str], updates: int) -> dict[str, Any]:
    """Everything that is found, as plain values; ``options`` of `o2o fit --phase online`."""
    from o2o_lightning.nn.actor import Actor
    from o2o_lightning.policies.history import player_of
    from o2o_lightning.report import diagnosis

    source = read_handover(path)
    command = _command(source, options)
    rule = DIRECT.get(source.actor["kind"])
    built = _built(command, path, updates)
    data, normalizer = built.datamodule, source.build_normalizer()
    data.normalizer = normalizer
    data.setup("fit")
    source.check_policy(None, data.sizes(), "", data.layout)
    if data.env_id is None:
        raise UserError(f"checkpoint {path}: it names no environment to play in. Pass --data.env_id ID.")
    discount = getattr(built.model.method, "discount", 0.99)
    actor = source.build_policy()
    player = player_of(actor, normalizer)
    result, visited, policy = diagnosis.measure_policy(player, data, discount)
    facts: dict[str, Any] = {
        "checkpoint": str(path), "phase": source.phase, "algorithm": source.algorithm, "family": source.actor["kind"],
        "env_id": data.env_id, "dataset": data.manifest(), "policy": policy, "critic": None, "fitted": None,
        "rehearsal": None, "own_critic": source.value is not None, "direct_rule": built.model.method.label,
    }  # fmt: skip
    if source.critic is not None:
        critic = source.build_critic()
        facts["critic"] = diagnosis.measure_critic(critic, source, visited)
    if isinstance(actor, Actor):
        facts["fitted"] = diagnosis.measure_fitted(actor, source, data, visited, discount)
    if rule is not None and source.critic is not None:
        built.fit()
        after = data.evaluate(player_of(built.model.policy(), normalizer))
        facts["rehearsal"] = diagnosis.rehearsed(result, after, critic, built.model.method.actor, source, visited, data)
        facts["rehearsal"]["updates"] = updates
    return {**facts, "verdict": vars(diagnosis.verdict(facts))}


def _command(source: Handover, options: list[str]) -> Command:
    """The direct rule of the policy's family, on the data that the policy learned from, unless it is told otherwise."""
    from o2o_lightning.envs.make import foreign_id

    asked = split(["--phase=online", *options])
    given = [*options]
    if not asked.overridden("online"):
        given += [f"online={DIRECT.get(source.actor['kind'], 'td3')}"]
    if "data.dataset" not in asked.values:
        if not source.manifest.get("source"):
            raise UserError(f"checkpoint {source.path}: it names no dataset. Pass --data.dataset SPEC.")
        given += [f"--data.dataset={source.manifest['source']}"]
    if "data.env_id" not in asked.values:
        env_id = foreign_id(source.env_id, f"checkpoint {source.path}")
        given += [] if env_id is None else [f"--data.env_id={env_id}"]
    return split(["--phase=online", *given])


def _built(command: Command, path: Path, updates: int) -> "Built":
    """The direct rule, ready to learn from the dataset alone."""
    from o2o_lightning.cli.lightning import PhaseCLI
    from o2o_lightning.cli.models import accepts, place

    config = lightning_config("online", compose("online", command))
    method = config["model"]["init_args"]["method"]
    config["model"] = {"class_path": REHEARSE, "init_args": {"init_from": str(path), "method": method}}
    given = config["data"]["init_args"]
    config["data"] = {"class_path": DATA, "init_args": {key: given[key] for key in given if accepts(DATA, key)}}
    config["trainer"] |= {"logger": False, "callbacks": [], "max_steps": updates}
    config["trainer"]["enable_progress_bar"] = False
    tokens = [
        token
        for option in command.options
        if option.name != "config"
        for token in option.at(place(option.name, config) or option.name)
    ]
    built = PhaseCLI(config, tokens, command.files).build(Path("."), "rehearse")
    if built.trainer.world_size > 1:
        raise UserError("--trainer.devices: `o2o diagnose` runs on one. Pass --trainer.devices 1.")
    built.trainer.callbacks = []  # type: ignore[attr-defined]
    return built


def _show(facts: dict[str, Any]) -> None:
    policy, data = facts["policy"], facts["dataset"]
    score = "" if policy["score"] is None else f", score {policy['score']:.1f}"
    spread = f"{policy['return_mean']:.1f} ± {policy['return_std']:.1f}"
    sections = [
        {
            "policy": f"{facts['algorithm']}, {facts['family']}, phase {facts['phase']}",
            "return": f"{spread} of {policy['episodes']} episodes{score}",
            "data's return": _spread(data),
            "actions off by 0.1": f"return {policy['shifted_return']:.1f}: {policy['bears']:.0%} is left",
        },
        {
            "support, states": _distances(policy, "state"),
            "support, actions": _distances(policy, "action"),
        },
    ]
    truth = (facts["critic"] or facts["fitted"] or {}).get("truth")
    if truth is not None:
        values = {"value of its steps": f"{truth:.1f}, what it earned from there, discounted"}
        for name, found in (("the critic says", facts["critic"]), ("the data says", facts["fitted"])):
            if found is not None:
                values[name] = (
                    f"{found['value']:.1f}, off by {found['error']:.0%}, correlation {found['correlation']:.2f}"
                )
        sections.append(values)
    if facts["critic"] is not None:
        critic = facts["critic"]
        sections.append(
            {
                "rank by Q": f"better than {critic['rank']:.0%} of 16 actions around it (σ 0.5), the best in "
                f"{critic['highest']:.0%} of states; {critic['gap']:+.2f} on average"
            }
        )
    if facts["rehearsal"] is not None:
        found, rule = facts["rehearsal"], facts["direct_rule"].upper()
        sections.append(
            {
                "rehearsal": f"{found['updates']:,} updates of {rule} alone move actions by {found['moved']:.2f}",
                "the critic promised": f"{found['promised']:+.2f} in value",
                "it got": f"return {found['return_mean']:.1f}: {found['kept']:.0%} is left",
            }
        )
    verdict = facts["verdict"]
    phases = ", ".join([*verdict["phases"], "online" if verdict["constraint"] else "online (online=td3, online=sac)"])
    sections.append({f"verdict: {verdict['direct']}": "\n".join(verdict["lines"]), "phases": phases})
    show_facts(f"{facts['checkpoint']} in {facts['env_id']}", *sections)


def _spread(data: dict[str, Any]) -> str:
    if data["return_mean"] is None:
        return "no complete episode"
    return f"{data['return_mean']:.1f} ± {data['return_std']:.1f}, {data['return_min']:.1f} to {data['return_max']:.1f}"


def _distances(policy: dict[str, Any], what: str) -> str:
    own, data = policy[f"policy_{what}_distance"], policy[f"data_{what}_distance"]
    return f"{own:.3f} from the nearest of the data; the data's own {data:.3f}"
