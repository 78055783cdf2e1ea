"""The sections that metrics' names have in loggers and for monitors: ``loss/critic``, ``eval/score``, ``critic/q``."""

_SECTIONS = {
    "clock": ("updates", "env_steps"),
    "eval": ("score", "return_mean", "sampled_score", "sampled_return_mean"),
    "rollout": ("last_episode_return",),
    "constraint": ("multiplier", "threshold", "divergence", "auxiliary_weight"),
    "critic": (
        "q", "target", "value", "return_to_go", "q_policy", "q_anchor", "q_explored", "q_perturbed",
        "conservative_gap", "explained_variance",
    ),
    "actor": (
        "log_prob", "log_prob_data", "offline_log_prob", "entropy", "temperature", "std", "std_max", "kl",
        "clip_fraction", "weight", "distance", "misfit", "learner_share",
    ),
}  # fmt: skip
_PREFIXES = {
    "eval_": "eval", "measured_": "convergence", "held_out_": "held_out", "anchor_": "anchor",
    "candidate_": "candidate",
}  # fmt: skip
_HOMES = {name: section for section, names in _SECTIONS.items() for name in names}
EVALUATED = ("score", "return_mean", "eval_env_steps")  # what each evaluation brings
LATER = ("eval", *_PREFIXES.values())  # sections that do not come with the first rows


def sectioned(name: str) -> str:
    """A name with its section: ``critic_loss`` is ``loss/critic``; one that nobody knows is of ``train``."""
    if name.endswith("_loss"):
        return f"loss/{name.removesuffix('_loss')}"
    if name in _HOMES or "/" in name:
        return f"{_HOMES[name]}/{name}" if name in _HOMES else name
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
    return f"train/{name}" if prefix is None else f"{_PREFIXES[prefix]}/{name.removeprefix(prefix)}"
