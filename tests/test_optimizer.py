import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssd_jax import optimizer

PARAMS = {
    "conv": {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([0.5])},
    "norm": {"scale": jnp.array([20.0])},
}
GRADS = {
    "conv": {"kernel": jnp.array([0.1, 0.2]), "bias": jnp.array([0.3])},
    "norm": {"scale": jnp.array([-0.4])},
}


def test_paper_schedule_divides_by_ten_at_each_drop():
    rate = optimizer.make_schedule(learning_rate=1e-3, steps=120_000, milestones=(80_000, 100_000))
    at = [float(rate(step)) for step in (0, 79_999, 80_001, 99_999, 100_001, 119_999)]
    np.testing.assert_allclose(at, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-5)


def test_warm_up_rises_linearly_to_the_rate():
    rate = optimizer.make_schedule(learning_rate=2.0, steps=100, warmup_steps=4)
    np.testing.assert_allclose([float(rate(s)) for s in range(6)], [0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


def test_cosine_ends_at_zero():
    rate = optimizer.make_schedule(learning_rate=2.0, steps=100, schedule="cosine")
    np.testing.assert_allclose([rate(0), rate(50), rate(100)], [2.0, 1.0, 0.0], atol=1e-6)


def test_sgd_follows_the_authors_update_rule():
    # By hand: v = m v + g + d w (no d for biases); w -= rate * (2 for biases) * v.
    opt = optimizer.make_optimizer(optax.constant_schedule(0.1))
    state, params = opt.init(PARAMS), PARAMS
    expected = jax.tree.map(np.asarray, PARAMS)
    velocity = jax.tree.map(np.zeros_like, expected)
    for _ in range(3):
        updates, state = opt.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
        for layer, name, decay, factor in (
            ("conv", "kernel", 5e-4, 1),
            ("conv", "bias", 0, 2),
            ("norm", "scale", 5e-4, 1),
        ):
            w, g = expected[layer][name], np.asarray(GRADS[layer][name])
            velocity[layer][name] = 0.9 * velocity[layer][name] + g + decay * w
            expected[layer][name] = w - 0.1 * factor * velocity[layer][name]
    for leaf, want in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, want, rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_biases_do_not_decay(name):
    opt = optimizer.make_optimizer(
        optax.constant_schedule(0.1), optimizer=name, weight_decay=0.5, bias_lr_multiplier=1.0
    )
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
    }
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = opt.update(nothing, opt.init(params), params)
    np.testing.assert_allclose(updates["conv"]["kernel"], -0.05, rtol=1e-5)
    np.testing.assert_array_equal(updates["conv"]["bias"], 0)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="schedule is 'linear'; choose"):
        optimizer.make_schedule(learning_rate=1.0, steps=1, schedule="linear")
    with pytest.raises(ValueError, match="optimizer is 'lion'; choose"):
        optimizer.make_optimizer(optax.constant_schedule(1.0), optimizer="lion")


def test_muon_moves_a_kernel_orthogonally_and_the_rest_as_nesterovs_adam():
    rng = np.random.default_rng(0)
    params = {
        "conv": {"kernel": jnp.zeros((3, 3, 4, 8)), "bias": jnp.zeros(8)},
        "depthwise": {"kernel": jnp.zeros((3, 3, 1, 8))},
    }
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    muon = optimizer.make_optimizer(
        optax.constant_schedule(0.1), optimizer="muon", weight_decay=0.0, bias_lr_multiplier=1.0
    )
    updates, _ = muon.update(grads, muon.init(params), params)
    matrix = np.asarray(updates["conv"]["kernel"]).reshape(36, 8)
    # Newton-Schulz brings the singular values near one another; 0.2 * sqrt(36) is their scale.
    values = np.linalg.svd(matrix)[1] / (0.1 * 0.2 * np.sqrt(36))
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert np.sum(matrix * np.asarray(grads["conv"]["kernel"]).reshape(36, 8)) < 0  # downhill
    adam = optax.nadam(0.1)
    expected, _ = adam.update(grads, adam.init(params), params)
    for layer, name in (("conv", "bias"), ("depthwise", "kernel")):
        np.testing.assert_allclose(updates[layer][name], expected[layer][name], rtol=1e-5)
