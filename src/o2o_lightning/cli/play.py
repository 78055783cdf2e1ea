"""``o2o play``: watches a checkpoint's policy, or records it."""

import argparse
import os
import sys
from pathlib import Path

from o2o_lightning.cli.arguments import Parser
from o2o_lightning.cli.show import refuse_existing, say
from o2o_lightning.errors import UserError, at_least
from o2o_lightning.ranges import check_ranges


def main(argv: list[str]) -> int:
    """Runs ``o2o play``."""
    parser = Parser("o2o play", description=__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="of any phase, e.g. RUN_DIR/online/checkpoints/best.ckpt")
    parser.add_argument("--record", type=Path, metavar="FILE", help=".mp4 or .gif to write, instead of a window")
    parser.add_argument("--episodes", type=int, default=1, help="default: 1")
    parser.add_argument("--policy", default="actor", choices=("actor", "reference", "offline"), help="default: actor")
    parser.add_argument("--env_id", "--data.env_id", dest="env_id", help="environment (default: CKPT's own)")
    parser.add_argument("--seed", type=int, default=1000, help="of the first episode's start (default: 1000)")
    arguments = parser.parse_args(argv)
    at_least("--episodes", arguments.episodes, 1)
    check_ranges("", {"episodes": arguments.episodes, "seed": arguments.seed})
    if arguments.record is not None:
        refuse_existing("--record", arguments.record)
        if not arguments.record.absolute().parent.is_dir():
            raise UserError(
                f"--record {arguments.record}: there is no folder {arguments.record.parent}. Make it first."
            )
    elif sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UserError("o2o play: there is no display here. Record a film: --record out.gif, or out.mp4.")
    _play(arguments)
    return 0


def _play(arguments: argparse.Namespace) -> None:
    from o2o_lightning.policies.load import load_policy
    from o2o_lightning.report.video import played, without_display

    if arguments.record is not None:
        without_display()
    loaded = load_policy(arguments.checkpoint, arguments.policy, arguments.env_id)
    if loaded.env_id is None:
        raise UserError(f"checkpoint {arguments.checkpoint}: it names no environment to play in. Pass --env_id ID.")
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    for number, episode in enumerate(played(loaded, loaded.env_id, seeds, arguments.record)):
        say(f"episode {number + 1}: {episode}")
    if arguments.record is not None:
        say(f"{arguments.record}: recorded")
