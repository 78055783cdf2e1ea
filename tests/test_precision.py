"""Mixed precision: the same steps in the same order, and full precision where eight bits would not do."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from every_phase import CASES as BATCHES
from every_phase import HIDDEN, SEQUENCES
from lightning.pytorch.plugins import MixedPrecision
from torch.nn import functional

from o2o_lightning.methods.method import Loss
from o2o_lightning.nn.squashed_gaussian import SquashedGaussianActor
from o2o_lightning.phases.base import Phase

UPDATES, BATCH = 6, 32
CASES = {**BATCHES, **SEQUENCES}


class ScaledOnly(MixedPrecision):
    """The loss scaling of ``16-mixed`` without its rounding; the scale doubles after every step that was made."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1))

    def autocast_context_manager(self) -> Any:
        return nullcontext()


def train(name: str, dataset: str, starts: Path, watch: Any = None, **options: Any) -> Phase:
    case = CASES[name]
    L.seed_everything(3, verbose=False)
    phase = case.make(str(starts / f"{case.after}.ckpt"))
    if watch is not None:
        watch(phase)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, max_steps=-1 if phase.clock_name == "env_steps" else UPDATES, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(phase, datamodule=case.data(dataset, BATCH, 1, UPDATES))
    if not options:
        trainer.save_checkpoint(starts / f"{name}.ckpt")
    return phase


@pytest.fixture(scope="module")
def exact(pendulum: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, torch.Tensor]], Path]:
    """Every phase in full precision: its weights at the end, and where its checkpoints are."""
    starts = tmp_path_factory.mktemp("precision")
    weights = {}
    for name in CASES:
        phase = train(name, pendulum, starts)
        weights[name] = {key: value.clone() for key, value in phase.state_dict().items()}
    return weights, starts


@pytest.mark.parametrize("name", CASES)
def test_a_scaled_loss_makes_the_very_same_steps(name, exact, pendulum):
    """With a scale that changes after each step, a backward pass before another's step would be off by two."""
    weights, starts = exact
    found = train(name, pendulum, starts, plugins=[ScaledOnly()]).state_dict()
    for key, value in weights[name].items():
        # powers of two: exact, but for the small number that clipping divides by
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7, msg=lambda text, key=key: key + text)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_every_phase_learns_in_mixed_precision_with_its_losses_in_full(name, precision, exact, pendulum, monkeypatch):
    weights, starts = exact
    rounded = {torch.bfloat16: 0, torch.float16: 0}
    linear, seen = functional.linear, []

    def counted(*args: Any) -> torch.Tensor:
        result = linear(*args)
        if result.dtype in rounded:
            rounded[result.dtype] += 1
        return result

    def watch(phase: Phase) -> None:
        settle = phase.settle

        def watched(loss: Loss) -> None:
            seen.append(loss)
            settle(loss)

        phase.settle = watched  # type: ignore[method-assign]

    monkeypatch.setattr(functional, "linear", counted)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    half = MixedPrecision("16-mixed", "cpu", scaler)
    options = {"plugins": [half]} if precision == "16-mixed" else {"precision": precision}
    found = train(name, pendulum, starts, watch, **options).state_dict()
    assert rounded[torch.bfloat16 if precision == "bf16-mixed" else torch.float16] > UPDATES
    check_full_precision(seen)
    rate = 2e-3 if "ppo" in name else 5e-4  # Adam moves a weight by its rate at most
    for key, value in weights[name].items():
        assert found[key].dtype == value.dtype, key
        if "bias" in key or "weight" in key or "log_" in key:
            torch.testing.assert_close(found[key], value, rtol=0, atol=2 * UPDATES * rate)


def check_full_precision(losses: list[Loss]) -> None:
    """Losses, values, log-probabilities, divergences and λ."""
    assert losses
    for loss in losses:
        for name, value in {"loss": loss.value, **loss.metrics}.items():
            assert value.dtype == torch.float32 and bool(torch.isfinite(value).all()), name


def test_log_probabilities_under_autocast_are_exact_for_the_distribution_that_drew_the_action():
    """Recomputed in double precision from the very mean and deviation."""
    torch.manual_seed(0)
    actor = SquashedGaussianActor(3, 2, HIDDEN)
    observation, noise = torch.randn(64, 3), torch.randn(64, 2)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        policy = actor.distribution(observation)
        _, log_prob = policy.sample(noise)
    mean, log_std, eps = (part.double() for part in (policy.mean, policy.log_std, noise))
    pre_tanh = mean + log_std.exp() * eps
    plain = torch.distributions.Normal(mean, log_std.exp()).log_prob(pre_tanh) - torch.log(1 - pre_tanh.tanh() ** 2)
    torch.testing.assert_close(log_prob.double(), plain.sum(-1), rtol=0, atol=2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("name", CASES)
def test_every_phase_learns_on_a_gpu(name, precision, exact, pendulum):
    _, starts = exact
    case = CASES[name]
    L.seed_everything(3, verbose=False)
    phase = case.make(str(starts / f"{case.after}.ckpt"))
    trainer = L.Trainer(
        accelerator="gpu", devices=1, precision=precision, max_epochs=1, logger=False, enable_checkpointing=False,
        max_steps=-1 if phase.clock_name == "env_steps" else UPDATES, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(phase, datamodule=case.data(pendulum, BATCH, 1, UPDATES))
    assert all(bool(torch.isfinite(value).all()) for value in phase.parameters())


@pytest.mark.gpu
def test_a_loss_that_is_not_finite_never_reaches_the_weights_of_a_gpu():
    from o2o_lightning.engine.health import ChunkRecord

    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))
    optimizer = torch.optim.Adam([weight], fused=True)
    record = ChunkRecord("online")
    for loss in (float("nan"), 1.0):
        weight.grad = torch.full_like(weight, loss)
        record.admit(torch.tensor(loss, device="cuda"), optimizer)
        optimizer.step()
    assert torch.equal(weight.cpu(), torch.ones(3))


@pytest.mark.parametrize(
    ("products", "before", "during", "after"),
    [
        ("highest", "high", "highest", "highest"),
        ("high", "highest", "high", "highest"),
        ("medium", "highest", "medium", "highest"),
        (None, "high", "high", "high"),
    ],
)
def test_how_exact_products_are_holds_for_the_phase_and_no_longer(
    products: Any, before: str, during: str, after: str, pendulum: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, train_chunk = [], Phase.train_chunk

    def watched(self: Phase, chunk: Any) -> None:
        found.append(torch.get_float32_matmul_precision())
        train_chunk(self, chunk)

    monkeypatch.setattr(Phase, "train_chunk", watched)
    torch.set_float32_matmul_precision(before)
    try:
        train("td3_bc", pendulum, tmp_path, lambda phase: setattr(phase, "products", products))
        assert {*found} == {during} and torch.get_float32_matmul_precision() == after
    finally:
        torch.set_float32_matmul_precision("highest")
