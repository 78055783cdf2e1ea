"""The Decision Transformers as functions: causality, losses, windows, LAMB, and acting on a history."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from data_files import raw_of
from torch import nn

from o2o_lightning.data.build import build_store
from o2o_lightning.nn.actors import build_policy
from o2o_lightning.nn.decision_transformer import (
    Block,
    DecisionTransformer,
    OnlineDecisionTransformer,
    SequencePolicy,
    SequenceSpec,
    Window,
)
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.nn.optimizers import LAMB
from o2o_lightning.objectives.imitation import (
    sequence_imitation_loss,
    sequence_likelihood_loss,
    sequence_temperature_loss,
)
from o2o_lightning.policies.history import HistoryPlayer
from o2o_lightning.replay.store import TransitionStore
from o2o_lightning.replay.windows import Windows

FAMILIES = (DecisionTransformer, OnlineDecisionTransformer)
SIZES = {"observation_dim": 3, "action_dim": 2, "width": 16, "layers": 2, "heads": 2, "dropout": 0.1, "context": 5,
         "acting_context": 4, "horizon": 12, "return_scale": 0.1, "target_return": 7.0}  # fmt: skip


def made(family: type[SequencePolicy], **changes: Any) -> SequencePolicy:
    torch.manual_seed(0)
    policy = family(SequenceSpec(kind=family.kind, **{**SIZES, **changes}))
    for parameter in policy.parameters():  # fresh weights are so small that a leak would hardly show
        nn.init.normal_(parameter, std=0.3)
    return policy.double().eval()


def window(batch: int = 3, steps: int = 5) -> Window:
    draw = torch.Generator().manual_seed(1)
    shapes = ((batch, steps), (batch, steps, 3), (batch, steps, 2))
    parts = [torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in shapes]
    return Window(*parts, torch.arange(steps).expand(batch, steps))  # type: ignore[call-arg]


# ---- the networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["return_to_go", "observation", "action"])
@pytest.mark.parametrize("step", [0, 2, 4])
def test_a_change_at_one_step_changes_no_action_before_it(family: type[SequencePolicy], part: str, step: int) -> None:
    policy, before = made(family), window()
    value = getattr(before, part).clone()
    value[:, step] += 1.0
    moved = (policy.modes(before._replace(**{part: value})) - policy.modes(before)).abs().amax((0, 2)) > 1e-9
    first = step + 1 if part == "action" else step  # a step's own action is what is asked for
    assert moved.tolist() == [i >= first for i in range(5)]


def test_only_the_decision_transformer_knows_the_time_step() -> None:
    late = window()._replace(timestep=window().timestep + 3)
    apart = [(made(family).modes(late) - made(family).modes(window())).abs().max().item() for family in FAMILIES]
    assert apart[0] > 1e-3 and apart[1] == 0.0


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_block_is_torchs_own_encoder_layer_with_a_causal_mask(activation: str) -> None:
    torch.manual_seed(0)
    block = Block(8, 2, 0.1, getattr(nn.functional, activation)).double().eval()
    layer = nn.TransformerEncoderLayer(8, 2, 32, 0.0, activation, batch_first=True, norm_first=True).double().eval()
    pairs = {
        "self_attn.in_proj_": "query_key_value.", "self_attn.out_proj.": "project.", "linear1.": "widen.",
        "linear2.": "narrow.", "norm1.": "attention_norm.", "norm2.": "mlp_norm.",
    }  # fmt: skip
    weights = block.state_dict()
    layer.load_state_dict({a + end: weights[b + end] for a, b in pairs.items() for end in ("weight", "bias")})
    x = torch.randn(3, 7, 8, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    torch.testing.assert_close(block(x), layer(x, src_mask=mask, is_causal=True), atol=1e-12, rtol=0)


def test_the_online_variants_deviation_lies_between_its_bounds() -> None:
    policy = made(OnlineDecisionTransformer)
    assert isinstance(policy, OnlineDecisionTransformer)
    nn.init.zeros_(policy.head_log_std.weight)
    for raw, expected in ((-50.0, -5.0), (0.0, -1.5), (50.0, 2.0), (0.3, -5.0 + 3.5 * (math.tanh(0.3) + 1.0))):
        nn.init.constant_(policy.head_log_std.bias, raw)
        assert float(policy.distribution(window()).log_std.detach()[0, 0, 0]) == pytest.approx(expected, abs=1e-9)


def test_dropout_draws_while_learning_and_never_while_acting() -> None:
    policy = made(DecisionTransformer, dropout=0.5)
    torch.testing.assert_close(policy.modes(window()), policy.modes(window()), atol=0, rtol=0)
    policy.train()
    assert not torch.equal(policy.modes(window()), policy.modes(window()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_spec_rebuilds_its_policy(family: type[SequencePolicy]) -> None:
    policy = made(family)
    again = build_policy(policy.spec.to_dict())
    again.load_state_dict(policy.state_dict())
    assert isinstance(again, family) and again.spec == policy.spec
    torch.testing.assert_close(again.double().eval().modes(window()), policy.modes(window()))


# ---- the optimizer -----------------------------------------------------------------------------------------------


def test_lamb_is_its_papers_algorithm() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    parameter = nn.Parameter(start.clone())
    optimizer = LAMB([parameter], lr=0.1, weight_decay=0.02)
    m = v = np.zeros(4)
    x = start.numpy().copy()
    for step, gradient in enumerate(gradients, 1):
        parameter.grad = gradient.clone()
        optimizer.step()
        g = gradient.numpy()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        r = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8) + 0.02 * x
        x = x - 0.1 * np.linalg.norm(x) / np.linalg.norm(r) * r
    np.testing.assert_allclose(parameter.detach().numpy(), x, rtol=1e-12)


def test_lamb_without_decay_is_adam() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    optimizers = LAMB([ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1)
    for gradient in torch.randn(4, 3, dtype=torch.float64):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_lamb_skips_a_step_that_fused_adam_would_skip() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = LAMB([parameter], lr=0.1, weight_decay=0.01)
    parameter.grad = torch.full((2,), math.nan)
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(2))
    assert not any(value.any() for value in optimizer.state[parameter].values())


def test_lamb_moves_a_parameter_of_zeros() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = LAMB([parameter], lr=0.1, weight_decay=0.01)
    parameter.grad = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((2,), -0.1))


# ---- the losses --------------------------------------------------------------------------------------------------

REAL = torch.tensor([[True, True, False], [True, False, False]])


def test_the_decision_transformers_loss_is_a_plain_sum_over_real_steps_by_all_entries() -> None:
    torch.manual_seed(0)
    action, data = torch.randn(2, 2, 3, 2, dtype=torch.float64)
    total = 0.0
    for b in range(2):
        for t in range(3):
            for i in range(2):
                total += float(REAL[b, t]) * float(action[b, t, i] - data[b, t, i]) ** 2
    assert float(sequence_imitation_loss(action, data, REAL)) == pytest.approx(total / 12, rel=1e-12)


def test_the_online_variants_losses_are_plain_means_over_real_steps() -> None:
    torch.manual_seed(0)
    log_prob, entropy = torch.randn(2, 2, 3, dtype=torch.float64)
    real = [(0, 0), (0, 1), (1, 0)]
    likelihood = sum(float(log_prob[at]) for at in real) / 3
    mean_entropy = sum(float(entropy[at]) for at in real) / 3
    found = sequence_likelihood_loss(log_prob, entropy, torch.tensor(0.3, dtype=torch.float64), REAL)
    assert float(found) == pytest.approx(-(likelihood + 0.3 * mean_entropy), rel=1e-12)
    log_temperature = torch.tensor(math.log(0.3), dtype=torch.float64, requires_grad=True)
    loss = sequence_temperature_loss(log_temperature, entropy, REAL, -2.0)
    assert float(loss.detach()) == pytest.approx(0.3 * (mean_entropy + 2.0), rel=1e-12)
    loss.backward()  # d(T·c)/d(log T) = T·c
    assert float(log_temperature.grad) == pytest.approx(0.3 * (mean_entropy + 2.0), rel=1e-12)  # type: ignore[arg-type]


def test_padding_pulls_at_nothing() -> None:
    action, log_prob = torch.randn(2, 3, 2, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    sequence_imitation_loss(action, torch.zeros(2, 3, 2), REAL).backward()
    sequence_likelihood_loss(log_prob, log_prob, torch.tensor(0.1), REAL).backward()
    for gradient in (action.grad, log_prob.grad):
        assert gradient is not None
        assert (gradient[~REAL] == 0).all() and (gradient[REAL] != 0).all()


# ---- the windows -------------------------------------------------------------------------------------------------

ENDS = {3: "terminated", 8: "truncated", 11: "terminated"}  # episodes of 4, 5 and 3 steps, and 2 that go on
ROWS, REWARDS = 14, np.arange(14, dtype=np.float32) ** 2


@pytest.fixture
def store() -> TransitionStore:
    flags = {name: np.zeros(ROWS, np.bool_) for name in ("terminated", "truncated")}
    for row, name in ENDS.items():
        flags[name][row] = True
    return build_store(raw_of(flags["terminated"], flags["truncated"], REWARDS), None)


def plain_returns_to_go() -> list[float]:
    returns = [0.0] * ROWS
    for row in reversed(range(ROWS)):
        after = 0.0 if row in ENDS or row == ROWS - 1 else returns[row + 1]
        returns[row] = float(REWARDS[row]) + after
    return returns


def episode_of(row: int) -> range:
    return next(e for e in (range(0, 4), range(4, 9), range(9, 12), range(12, 14)) if row in e)


def test_a_window_holds_its_episodes_steps_and_what_was_still_to_come(store: TransitionStore) -> None:
    expected = plain_returns_to_go()
    found = Windows(store, 3, 0.1).gather(torch.arange(ROWS))
    for row in range(ROWS):
        for i in range(3):
            inside = row + i in episode_of(row)
            assert bool(found["real"][row, i]) == inside
            if inside:
                assert float(found["return_to_go"][row, i]) == pytest.approx(0.1 * expected[row + i], rel=1e-6)
                assert int(found["timestep"][row, i]) == row + i - episode_of(row).start
                assert torch.equal(found["observation"][row, i], store.leaves["observation"][row + i])
                assert torch.equal(found["action"][row, i], store.leaves["action"][row + i])


def test_windows_start_at_every_step_of_a_whole_episode_and_nowhere_else(store: TransitionStore) -> None:
    rows = Windows(store, 3, 1.0).sample_rows((600, 20), torch.Generator().manual_seed(0))
    share = torch.bincount(rows.reshape(-1), minlength=ROWS) / rows.numel()
    assert share[12:].tolist() == [0.0, 0.0]  # the recording stopped in this episode
    assert float((share[:12] - 1 / 12).abs().max()) < 0.01  # five deviations


@pytest.mark.parametrize("length", [1, 3, 4, 20])
def test_every_step_of_the_dataset_is_seen_once_behind_its_longest_context(store: TransitionStore, length: int) -> None:
    windows, seen = Windows(store, length, 1.0), []
    for rows, asked in windows.contexts(5):
        for row, steps in zip(rows.tolist(), asked, strict=True):
            for i in steps.nonzero().flatten().tolist():
                at = row + i
                seen.append(at)
                assert at in episode_of(row) and i + 1 == min(length, at - episode_of(at).start + 1)
    assert sorted(seen) == list(range(ROWS))


def test_a_target_replaces_the_return_and_falls_by_the_rewards_so_far(store: TransitionStore) -> None:
    found = Windows(store, 3, 0.1).gather(torch.tensor([5]), target=1000.0)["return_to_go"][0]
    wanted = [1000.0 - 16, 1000.0 - 16 - 25, 1000.0 - 16 - 25 - 36]  # rows 5, 6, 7 of the episode that begins at 4
    torch.testing.assert_close(found, torch.tensor(wanted) * 0.1, rtol=1e-6, atol=0)


# ---- acting ------------------------------------------------------------------------------------------------------


def by_hand(policy: SequencePolicy, normalizer: Normalizer, observations: Any, actions: Any, rewards: Any) -> Any:
    """The action after the last of ``observations``, from the whole history so far, by one unpadded pass."""
    spec, steps = policy.spec, len(observations)
    to_go = spec.target_return - np.concatenate([[0.0], np.cumsum(rewards)])[:steps]
    last = slice(max(steps - spec.acting_context, 0), steps)
    padded = np.concatenate([np.asarray(actions, np.float32).reshape(-1, 2), np.zeros((1, 2), np.float32)])
    seen = Window(
        torch.tensor(to_go[last], dtype=torch.float32)[None] * spec.return_scale,
        normalizer(torch.from_numpy(np.asarray(observations, np.float32)[last]))[None],
        torch.from_numpy(padded[last])[None],
        torch.arange(steps)[None, last],
    )
    with torch.no_grad():
        return policy.modes(seen)[0, -1].numpy()


NORMALIZER = Normalizer(torch.tensor([1.0, 0.0, -1.0]), torch.tensor([1.0, 2.0, 0.5]))


@pytest.mark.parametrize("family", FAMILIES)
def test_acting_step_by_step_is_one_pass_over_the_history_also_when_others_have_ended(
    family: type[SequencePolicy],
) -> None:
    policy, draw = made(family).float().train(), np.random.default_rng(0)
    player, reference = HistoryPlayer(policy, NORMALIZER), made(family).float()
    history: dict[int, tuple[list[Any], list[Any], list[Any]]] = {i: ([], [], []) for i in range(3)}
    for _ in range(2):  # a second evaluation starts anew
        player.reset(3)
        history = {i: ([], [], []) for i in range(3)}
        for step in range(9):
            running = [i for i in range(3) if not (i == 1 and step >= 3)]
            observation = draw.normal(size=(len(running), 3)).astype(np.float32)
            actions = player.act(observation, running)
            rewards = draw.normal(size=len(running)).astype(np.float32)
            for i, seen, action, reward in zip(running, observation, actions, rewards, strict=True):
                observations, taken, earned = history[i]
                observations.append(seen)
                expected = by_hand(reference, NORMALIZER, observations, taken, earned)
                np.testing.assert_allclose(action, expected, atol=2e-6)
                taken.append(action)
                earned.append(float(reward))
            player.observe(rewards, running)
    assert policy.training  # acting in the middle of learning leaves dropout as it was


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clones_labels_see_each_state_behind_its_own_history_and_ask_for_the_target(
    family: type[SequencePolicy], store: TransitionStore
) -> None:
    policy = made(family).float()
    labels = HistoryPlayer(policy, NORMALIZER).label(store, torch.device("cpu"))
    for row in range(ROWS):
        past = slice(episode_of(row).start, row)
        observations = store.leaves["observation"][past.start : row + 1].numpy()
        actions = store.leaves["action"][past].numpy()
        expected = by_hand(policy, NORMALIZER, observations, actions, REWARDS[past])
        np.testing.assert_allclose(labels[row].numpy(), expected, atol=2e-6)
