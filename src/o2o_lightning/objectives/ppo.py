"""PPO (Schulman et al. 2017, https://arxiv.org/abs/1707.06347) and O2PPO's auxiliary advantage, Eqs. 17–18, 48, 51."""

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torchrl.objectives.value.functional import generalized_advantage_estimate

SOFT_FLOOR = 4.0  # a term of the auxiliary advantage never falls below −4 (Eq. 51)


def advantage_and_target(
    value: Tensor,
    next_value: Tensor,
    reward: Tensor,
    terminated: Tensor,
    ended: Tensor,
    discount: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    r"""Generalised advantage :math:`\hat A_t = \delta_t + \gamma\lambda(1 - e_t)\hat A_{t+1}` and its value target.

    :math:`\delta_t = r_t + \gamma(1 - d_t)V(s_{t+1}) - V(s_t)`: the end of an episode always cuts the recursion, and
    only a termination cuts the bootstrap. The target is :math:`\hat A + V`, with V before the update.

    Args: all ``[N, T]``, time last; ``terminated`` d and ``ended`` e bool. Returns two ``[N, T]``.
    """
    columns = (value, next_value, reward, ended.bool(), terminated.bool())
    value, next_value, reward, ended, terminated = (column.unsqueeze(-1) for column in columns)
    advantage, target = generalized_advantage_estimate(
        discount, gae_lambda, value, next_value, reward, done=ended, terminated=terminated
    )
    return advantage.squeeze(-1), target.squeeze(-1)


def log_density_terms(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    r"""Each dimension's :math:`\log\pi_{ref}(a_j|s) + H_j = \frac12(1 - z_j^2)` for a diagonal Gaussian, Eqs. 17, 48.

    Args: ``action``, ``mean`` ``[B, A]`` and ``log_std [A]`` of π_ref. Returns ``[B, A]``, of mean zero under π_ref.
    """
    return 0.5 * (1.0 - ((action - mean) * (-log_std).exp()).square())


def auxiliary_advantage(terms: Tensor, joint: bool = False) -> Tensor:
    r"""Softly floored auxiliary advantage, Eq. 51, in units of α·std(Â).

    Per dimension, :math:`\mathrm{mean}_j\,[\mathrm{softplus}(x_j + 4) - 4]`; jointly, as the official code,
    :math:`[\mathrm{softplus}(\sum_j x_j + 4A) - 4A] / A` (D19). Both end near −4 and near ½.

    Args: ``terms`` x ``[B, A]`` of :func:`log_density_terms`. Returns ``[B]``.
    """
    if joint:
        size = terms.shape[-1]
        return (softplus(terms.sum(-1) + SOFT_FLOOR * size) - SOFT_FLOOR * size) / size
    return (softplus(terms + SOFT_FLOOR) - SOFT_FLOOR).mean(-1)


def combined_advantage(advantage: Tensor, auxiliary: Tensor, weight: float, pairwise: bool = False) -> Tensor:
    r"""Advantage :math:`A' = A + \beta A_\alpha` of Eq. 18.

    The official code divides by 1 + β, which the normalisation undoes (D20), and adds a vector to a column:
    ``pairwise`` reproduces its matrix, each sample's advantage with every sample's auxiliary term (D18).

    Args: ``advantage`` and ``auxiliary`` ``[B]``; ``weight`` β. Returns ``[B]``, or ``[B, B]`` with ``pairwise``.
    """
    return (advantage.unsqueeze(-1) if pairwise else advantage) + weight * auxiliary


def normalized_advantage(advantage: Tensor, whole: Tensor | None = None) -> Tensor:
    """Zero mean and unit deviation over the ``whole`` rollout, of which ``advantage`` may be a part; any shape."""
    whole = advantage if whole is None else whole
    return (advantage - whole.mean()) / (whole.std() + 1e-5)


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    r"""PPO's :math:`-\mathrm{mean}\min\{\rho A, \mathrm{clip}(\rho, 1\pm\epsilon) A\}`.

    Args: ``ratio`` ρ ``[B]``; ``advantage [B]``, or ``[B, M]`` where samples were paired (D18). Returns a scalar.
    """
    if advantage.ndim == 2:
        ratio = ratio.unsqueeze(-1)
    return -torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage).mean()


def value_loss(value: Tensor, target: Tensor) -> Tensor:
    r"""Squared error :math:`\mathrm{mean}\,(V(s) - G)^2`, unclipped. Both ``[B]``; returns a scalar."""
    return (value - target).square().mean()


def clipped_value_loss(value: Tensor, old: Tensor, target: Tensor, clip: float) -> Tensor:
    r"""The larger of two squares, :math:`\mathrm{mean}\max\{(V - G)^2, (\bar V + \delta - G)^2\}`, δ = V − V̄ within ±ε.

    Args: ``value`` V, ``old`` V̄ before the updates and ``target`` G, all ``[B]``. Returns a scalar.
    """
    clipped = old + (value - old).clamp(-clip, clip)
    return torch.maximum((value - target).square(), (clipped - target).square()).mean()


def normal_divergence(mean: Tensor, log_std: Tensor, other_mean: Tensor, other_log_std: Tensor) -> Tensor:
    r"""Divergence :math:`KL(p\,\|\,q)` of diagonal Normals, ``p`` the first pair.

    Args: means ``[B, A]``, log-deviations ``[A]`` or ``[B, A]``. Returns ``[B]``.
    """
    spread = (2 * (log_std - other_log_std)).exp()
    shift = ((mean - other_mean) * (-other_log_std).exp()).square()
    return (other_log_std - log_std + 0.5 * (spread + shift - 1.0)).sum(-1)


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    r"""Share :math:`1 - \mathrm{Var}(G - V)/\mathrm{Var}(G)`: 1 perfect, 0 no better than a constant."""
    return 1.0 - (target - value).var() / target.var().clamp(min=1e-12)
