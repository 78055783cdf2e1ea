"""A phase's noise: the same numbers, one update at a time or many at once."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from o2o_lightning.engine.noise import BLOCK, NoiseBlocks
from o2o_lightning.methods.method import Draws, Normal, Uniform

CPU = torch.device("cpu")
FORMS = st.sampled_from([Normal((3, 2)), Normal((2,)), Uniform((3, 2)), Uniform((1,))])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(FORMS, max_size=4),
    st.lists(st.integers(1, 3 * BLOCK), min_size=1, max_size=6),
    st.integers(0, 2**31),
)
def test_the_noise_of_many_updates_is_that_of_one_after_the_other(
    forms: list[Normal | Uniform], counts: list[int], seed: int
) -> None:
    wanted: Draws = {f"noise_{i}": form for i, form in enumerate(forms)}
    one, many = NoiseBlocks(seed, CPU), NoiseBlocks(seed, CPU)
    for i, count in enumerate(counts):
        found = many.draw_many(wanted, count)
        assert [*found] == [*wanted]
        for k in range(count):
            expected = one.draw(wanted)
            assert all(torch.equal(found[name][k], value) for name, value in expected.items())
        if i == 1:  # a run goes on from here, either way
            other = NoiseBlocks(0, CPU)
            other.load_state(many.state())
            many = other
    assert torch.equal(one.generator.get_state(), many.generator.get_state())
