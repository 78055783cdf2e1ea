"""The cases of golden.py."""

from __future__ import annotations

SMALL = [
    *(f"steps.{name}=40" for name in ("offline", "clone", "reevaluate", "align")),
    *("steps.env=80", "checkpoint_every=10", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=5"),
    *("--data.chunk=8", "--data.batch_size=16", "--data.eval_every=30", "--data.eval_every_updates=20"),
    "--data.eval_episodes=1",
]
REPLAY, ROLLOUT = ["--data.warmup_steps=20"], ["--data.rollout=32", "--data.epochs=2"]
# of every network that is made anew, where the phase has such an argument
WIDTHS = {"hidden": "[16,16]", "critic_hidden": "[16,16]", "value_hidden": "[16,16]", "width": "16", "layers": "1"}
WIDTHS |= {"heads": "2", "context": "4", "acting_context": "4"}
SETTLED = " ".join(
    f"--model.convergence.{name}={value}"
    for name, value in {"every": 5, "window": 2, "tolerance": 0.5, "patience": 1, "least": 10, "most": 40}.items()
)
# phase/method[/variant] | the case that it starts from | what is typed; on the Hopper set that ships with the package
HOPPER = f"""
offline/td3_bc | | offline=td3_bc
offline/cql | | offline=cql
offline/cql/antmaze | | offline=cql --model.lagrange_gap=0.8 --model.gap_min=-200 --model.max_target=true \
    --model.conservative_weight=5 --model.critic_hidden=[16,16,16] --model.actor_lr=1e-4 --data.normalize=false
offline/iql | | offline=iql
offline/iql/deterministic | | offline=iql --model.deterministic=true --model.anneal_updates=50
offline/awac | | offline=awac
offline/bc/deterministic | | offline=bc online=o2td3
offline/bc/gaussian | | offline=bc online=o2ppo
offline/bc/squashed_gaussian | | offline=bc online=o2sac
offline/bc10 | | offline=bc10
offline/dt | | offline=dt
offline/odt | | offline=odt
clone/td3_bc/o2sac | offline/td3_bc | online=o2sac --model.check_every=10
clone/td3_bc/o2ppo | offline/td3_bc | online=o2ppo --model.check_every=10 --model.patience=1 --model.progress=10
clone/td3_bc/o2td3 | offline/td3_bc | online=o2td3 --model.check_every=10
clone/iql/o2sac | offline/iql | online=o2sac --model.check_every=10
clone/iql/o2ppo | offline/iql | online=o2ppo --model.check_every=10 --model.labels=mode --model.mode_weight=0
clone/iql/o2td3 | offline/iql | online=o2td3 --model.check_every=10
clone/odt/o2sac | offline/odt | online=o2sac --model.check_every=10
reevaluate/o2td3 | offline/td3_bc | online=o2td3
reevaluate/o2td3/converged | offline/td3_bc | online=o2td3 stop=converged {SETTLED}
reevaluate/o2sac | offline/cql | online=o2sac
reevaluate/o2sac/clone | clone/td3_bc/o2sac | online=o2sac --model.critics=1 --model.layer_norm=false
reevaluate/o2sac/converged | offline/cql | online=o2sac stop=converged {SETTLED}
reevaluate/o2ppo | offline/iql | online=o2ppo
reevaluate/o2ppo/options | offline/iql | online=o2ppo --model.leak_returns=true --model.reward_scaling=dynamic
reevaluate/o2ppo/converged | offline/iql | online=o2ppo stop=converged {SETTLED}
align/o2td3 | reevaluate/o2td3 | online=o2td3
align/o2td3/direct | offline/td3_bc | online=o2td3 --model.curvature=0.5
align/o2td3/converged | reevaluate/o2td3 | online=o2td3 stop=converged {SETTLED}
align/o2sac | reevaluate/o2sac | online=o2sac
align/o2sac/clone | reevaluate/o2sac/clone | online=o2sac --model.temperature=0.5
align/o2sac/converged | reevaluate/o2sac | online=o2sac stop=converged {SETTLED}
online/o2td3 | align/o2td3 | online=o2td3
online/o2td3/utd | align/o2td3 | online=o2td3 --data.utd=3
online/o2sac | align/o2sac | online=o2sac
online/o2sac/utd | align/o2sac | online=o2sac --data.utd=3
online/o2sac/clone | align/o2sac/clone | online=o2sac
online/o2ppo | reevaluate/o2ppo | online=o2ppo
online/o2ppo/options | reevaluate/o2ppo | online=o2ppo --model.reward_scaling=dynamic --model.std_cap=0.05 \
    --model.decay_env_steps=100 --model.auxiliary.env_steps=100 --data.num_envs=2 --model.reference.mode=interval \
    --model.reference.period=20
online/td3 | offline/td3_bc | online=td3
online/sac | offline/cql | online=sac
online/ppo | reevaluate/o2ppo | online=ppo
online/td3/scratch | | online=td3 experiment=scratch --data.env_id=Hopper-v5
online/sac/scratch | | online=sac experiment=scratch --data.env_id=Hopper-v5
online/ppo/scratch | | online=ppo experiment=scratch --data.env_id=Hopper-v5
all/o2td3 | | offline=td3_bc online=o2td3
all/o2sac | | offline=cql online=o2sac
all/o2ppo | | offline=iql online=o2ppo
all/o2sac/cloned | | offline=td3_bc online=o2sac phases=auto
all/o2td3/no_alignment | | offline=td3_bc online=o2td3 experiment=no_alignment
all/o2sac/no_reevaluation | | offline=cql online=o2sac experiment=no_reevaluation
"""
# The same on 480 transitions of Pendulum-v1, whose actions are in ±2 and whose episodes only time ends.
PENDULUM = """
offline/td3_bc | | offline=td3_bc --model.policy_delay=1 --data.reward_scale=0.1 --data.reward_shift=-5
offline/cql | | offline=cql --data.reward_range=true --model.entropy_backup=true --model.importance_sampling=false
offline/iql | | offline=iql --data.normalize=false
reevaluate/o2td3 | offline/td3_bc | online=o2td3 --model.layer_norm=false --data.reward_range=true
reevaluate/o2sac | offline/cql | online=o2sac
reevaluate/o2ppo | offline/iql | online=o2ppo
align/o2td3 | reevaluate/o2td3 | online=o2td3
align/o2sac | reevaluate/o2sac | online=o2sac
online/o2td3/long | align/o2td3 | online=o2td3 steps.env=230 --data.warmup_steps=180
online/o2sac | align/o2sac | online=o2sac --model.reference.mode=interval --model.reference.period=25
online/o2ppo/long | reevaluate/o2ppo | online=o2ppo steps.env=240
online/o2ppo/frozen | reevaluate/o2ppo | online=o2ppo experiment=frozen_reference --model.auxiliary.joint=true
online/o2ppo/pairwise | reevaluate/o2ppo | online=o2ppo --model.auxiliary.pairwise=true --model.entropy=0
online/o2td3/all | align/o2td3 | online=o2td3 --data.mix=all
online/o2td3/part | align/o2td3 | online=o2td3 --data.mix=part
online/o2td3/none | align/o2td3 | online=o2td3 --data.mix=none --data.capacity=40
online/o2td3/multiplier | align/o2td3 | online=o2td3 --model.multiplier.every=3 --model.multiplier.lr=1e-2 \
    --model.multiplier.satisfied_weight=0.2 --model.multiplier.violated_weight=0.9 --model.multiplier.start=2
online/o2sac/multiplier | align/o2sac | online=o2sac --model.multiplier.every=2 --model.multiplier.lr=1e-2 \
    --model.multiplier.satisfied_weight=0.2 --model.multiplier.violated_weight=0.9 --model.threshold.env_steps=50
online/o2td3/interval | align/o2td3 | online=o2td3 --model.reference.mode=interval --model.reference.period=25 \
    --model.reference.threshold_scale=0.25 --model.actor_grad_clip=0.25
online/o2td3/frozen | align/o2td3 | online=o2td3 --model.reference.mode=frozen --model.reference.start=offline
online/o2td3/aligned | align/o2td3 | online=o2td3 --model.reference.start=aligned --model.threshold.end=0
online/o2sac/frozen | align/o2sac | online=o2sac --model.reference.mode=frozen --model.actor_grad_clip=0.1
online/o2td3/penalty | align/o2td3 | online=o2td3 --model.penalty=batch
online/o2td3/normalize_q | align/o2td3 | online=o2td3 --model.normalize_q=false --model.policy_delay=1
online/o2td3/unconstrained | align/o2td3 | online=o2td3 experiment=no_constraint --data.reward_scale=0.1
"""
KILLED = (
    "hopper/offline/cql",
    "hopper/clone/td3_bc/o2sac",
    "hopper/reevaluate/o2sac",
    "hopper/align/o2td3",
    "hopper/online/o2sac",
    "hopper/online/o2td3/utd",
    "hopper/online/o2ppo",
)
