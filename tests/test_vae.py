"""The VAE against what this project did not write.

torch.distributions, scikit-learn, closed forms, quadrature and enumeration of all
images: each result is asked for twice, once from the library and once from one of
these. Everything random is seeded, so a test passes always or never.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import (
    Bernoulli,
    Binomial,
    Independent,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from genlib.training import fit
from genlib.vae import (
    MLP,
    VAE,
    AutoregressiveDecoder,
    AutoregressiveVAE,
    ConvDecoder,
    ConvEncoder,
    ImageDecoder,
    LinearGaussian,
    MLPDecoder,
    MLPEncoder,
    digits_program,
    elbo_loss,
    elbo_terms,
    evaluate,
    gaussian_kl,
    interpolate,
    iwae_bound,
    log_likelihood,
    make_step,
    negative_elbo,
    reparameterize,
)


def count(module):
    return sum(p.numel() for p in module.parameters())


def bend(module, scale):
    """Larger weights, so that the network is far from a constant."""
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(scale)


def close_to(samples, exact, errors=4.5):
    """Is the mean of samples (R, ...) within that many standard errors of exact?"""
    error = samples.std(0) / len(samples) ** 0.5
    return bool(((samples.mean(0) - exact).abs() <= errors * error + 1e-5).all())


# --- the pieces: divergence, noise, likelihood ---------------------------------


def test_gaussian_kl_is_that_of_torch_distributions():
    torch.manual_seed(0)
    mu, logvar = 2 * torch.randn(2, 5, 3), 2 * torch.randn(2, 5, 3)
    expected = kl_divergence(Normal(mu, logvar.exp().sqrt()), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mu, logvar), expected)
    assert gaussian_kl(torch.zeros(1), torch.zeros(1)) == 0


def test_gaussian_kl_is_the_integral_of_the_log_ratio():
    z = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    for mu, sigma in [(0.0, 1.0), (1.5, 0.4), (-0.7, 2.0)]:
        q, p = Normal(mu, sigma), Normal(0.0, 1.0)
        integrand = q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z))
        parts = torch.tensor(mu).double(), 2 * torch.tensor(sigma).double().log()
        expected = torch.trapezoid(integrand, z)
        torch.testing.assert_close(gaussian_kl(*parts), expected, atol=1e-6, rtol=0)


def test_gaussian_kl_gradients():
    torch.manual_seed(0)
    mu, logvar = torch.randn(2, 4, 3, dtype=torch.float64).requires_grad_().unbind()
    assert torch.autograd.gradcheck(gaussian_kl, (mu, logvar))


def test_reparameterize_draws_from_the_gaussian():
    torch.manual_seed(0)
    mu, logvar = torch.tensor([0.0, -3.0, 5.0]), torch.tensor([0.0, -4.0, 1.5])
    draws = reparameterize(mu.expand(100_000, 3), logvar.expand(100_000, 3))
    ranks = torch.arange(1, 100_001)[:, None] / 100_000
    cdf = Normal(mu, (0.5 * logvar).exp()).cdf(draws.sort(0).values)
    # Kolmogorov-Smirnov: beyond 1.95 / sqrt(n) in 1 of 1000 true samples
    assert (cdf - ranks).abs().max() < 1.95 / 100_000**0.5
    correlation = torch.corrcoef(draws.T) - torch.eye(3)
    assert correlation.abs().max() < 0.015  # the dimensions get noise of their own


def test_reparameterize_with_given_noise():
    mu, logvar = torch.tensor([[1.0, 2.0]]), torch.tensor([[math.log(4), math.log(9)]])
    z = reparameterize(mu, logvar, eps=torch.tensor([[1.0, -2.0]]))
    torch.testing.assert_close(z, torch.tensor([[3.0, -4.0]]))
    assert reparameterize(mu, logvar, eps=torch.zeros(7, 1, 2)).shape == (7, 1, 2)


def test_reparameterize_passes_gradients_to_both():
    torch.manual_seed(0)
    mu, logvar = torch.randn(2, 4, 3, dtype=torch.float64).requires_grad_().unbind()
    eps = torch.randn(4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda m, v: reparameterize(m, v, eps), (mu, logvar)
    )


def test_gradient_of_an_expectation():
    # E[z^2] = mu^2 + sigma^2: the gradient is known, the samples must agree with it.
    torch.manual_seed(0)
    n = 200_000
    mu, logvar = torch.full((n,), 0.7), torch.full((n,), -0.5)
    mu.requires_grad_(), logvar.requires_grad_()
    reparameterize(mu, logvar).square().sum().backward()
    assert close_to(mu.grad, 2 * 0.7)
    assert close_to(logvar.grad, math.exp(-0.5))


@pytest.mark.parametrize("n", [1, 16, 255])
def test_log_likelihood_is_that_of_torch_distributions(n):
    torch.manual_seed(0)
    k = torch.randint(0, n + 1, (4, 3, 5, 6)).float()
    logits = 3 * torch.randn(4, 3, 5, 6)
    pixels = Binomial(n, logits=logits.double())
    expected = Independent(pixels, 3).log_prob(k.double())
    assert expected.shape == (4,)
    result = log_likelihood(k / n, logits, n).double()
    torch.testing.assert_close(result, expected, rtol=2e-5, atol=1e-3)
    for end in (0.0, 1.0):  # rounding on the way to k/n makes no difference
        near = torch.nextafter(k / n, torch.tensor(end))
        result = log_likelihood(near, logits, n).double()
        torch.testing.assert_close(result, expected, rtol=2e-5, atol=1e-3)
    if n == 1:
        expected = Independent(Bernoulli(logits=logits), 3).log_prob(k)
        torch.testing.assert_close(log_likelihood(k, logits), expected)


@pytest.mark.parametrize("n", [1, 2, 16])
def test_probabilities_of_all_counts_sum_to_one(n):
    logits = torch.tensor([-6.0, -0.3, 0.0, 2.5])
    k = torch.arange(n + 1.0)
    x, logits = torch.cartesian_prod(k / n, logits).T
    log_p = log_likelihood(x.view(-1, 1, 1, 1), logits.view(-1, 1, 1, 1), n)
    total = log_p.view(n + 1, 4).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(4))


@pytest.mark.parametrize("n", [2, 16, 255])
def test_log_likelihood_in_double_precision(n):
    torch.manual_seed(0)
    k = torch.randint(0, n + 1, (4, 1, 5, 6)).double()
    logits = 3 * torch.randn(4, 1, 5, 6, dtype=torch.float64)
    expected = Independent(Binomial(n, logits=logits), 3).log_prob(k)
    result = log_likelihood(k / n, logits, n)
    torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)


def test_log_likelihood_has_an_onnx_form(tmp_path):
    pytest.importorskip("onnxscript")
    from genlib.export import export_onnx, run_onnx

    k, logits = torch.arange(17.0).view(17, 1, 1, 1), torch.linspace(-4, 4, 17)
    feeds = {"x": k / 16, "logits": logits.view(17, 1, 1, 1)}
    path = tmp_path / "score.onnx"
    export_onnx(lambda x, y: log_likelihood(x, y, 16), feeds, path, ["score"])
    expected = Binomial(16, logits=logits).log_prob(k.flatten())
    score = torch.from_numpy(run_onnx(path, feeds)["score"])
    torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-4)


def test_log_likelihood_of_certain_pixels_is_finite_and_right():
    x = torch.tensor([0.0, 1.0, 1.0, 0.0]).view(4, 1, 1, 1)
    logits = torch.tensor([-300.0, 300.0, -300.0, 300.0]).view(4, 1, 1, 1)
    expected = torch.tensor([0.0, 0.0, -300.0, -300.0])
    torch.testing.assert_close(log_likelihood(x, logits), expected)
    torch.testing.assert_close(log_likelihood(x, logits, 16), 16 * expected)


def test_gradient_of_the_log_likelihood_is_the_prediction_error():
    torch.manual_seed(0)
    x, logits = torch.randint(0, 17, (2, 1, 3, 3)) / 16, torch.randn(2, 1, 3, 3)
    logits.requires_grad_()
    log_likelihood(x, logits, 16).sum().backward()
    torch.testing.assert_close(logits.grad, 16 * (x - logits.sigmoid()).detach())


# --- networks ------------------------------------------------------------------


def test_mlp_puts_activations_between_the_layers_only():
    net = MLP(3, 4, 5, 2, activation=nn.Tanh)
    kinds = [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert [type(layer) for layer in net] == kinds
    assert [(m.in_features, m.out_features) for m in list(net)[::2]] == [
        (3, 4),
        (4, 5),
        (5, 2),
    ]


def test_size_of_the_published_pytorch_example():
    # 784-400-20 in pytorch/examples: fc1, fc21 and fc22, fc3, fc4
    parts = (784 * 400 + 400, 2 * (400 * 20 + 20), 20 * 400 + 400, 400 * 784 + 784)
    assert sum(parts) == 652_824
    shape = (1, 28, 28)
    vae = VAE(MLPEncoder(shape, (400,), 2 * 20), MLPDecoder(shape, (400,), 20))
    assert count(vae) == 652_824


@pytest.mark.parametrize(
    ("hidden", "latent"),
    [((500,), 20), ((200, 200), 50)],
    ids=["kingma-welling-2014", "burda-2016"],
)
def test_sizes_of_the_papers_can_be_asked_for(hidden, latent):
    shape = (1, 28, 28)
    encoder = MLPEncoder(shape, hidden, 2 * latent, activation=nn.Tanh)
    decoder = MLPDecoder(shape, hidden, latent, activation=nn.Tanh)
    there, back = (784, *hidden, 2 * latent), (latent, *hidden, 784)
    for part, sizes in ((encoder, there), (decoder, back)):
        expected = sum((a + 1) * b for a, b in itertools.pairwise(sizes))
        assert count(part) == expected
        assert sum(isinstance(m, nn.Tanh) for m in part.modules()) == len(hidden)
        assert not any(isinstance(m, nn.ReLU) for m in part.modules())
    x = torch.rand(3, *shape)
    vae = VAE(encoder, decoder)
    assert [t.shape for t in vae.encode(x)] == [(3, latent)] * 2
    assert vae.decode(vae.encode(x)[0]).shape == (3, *shape)


def test_mlp_networks_compute_what_their_layers_do():
    torch.manual_seed(0)
    x, z, shape = torch.rand(2, 2, 3, 4), torch.randn(2, 3), (2, 3, 4)
    encoder, decoder = MLPEncoder(shape, (7, 5), 6), MLPDecoder(shape, (7, 5), 3)
    sizes = [(7, 24), (5, 7), (6, 5), (7, 3), (5, 7), (24, 5)]
    a, b, c, d, e, f = [
        (m.weight, m.bias)
        for net in (encoder, decoder)
        for m in net.modules()
        if isinstance(m, nn.Linear)
    ]
    assert [tuple(w.shape) for w, _ in (a, b, c, d, e, f)] == sizes
    hidden = F.linear(F.linear(x.flatten(1), *a).relu(), *b).relu()
    torch.testing.assert_close(encoder(x), F.linear(hidden, *c))
    hidden = F.linear(F.linear(z, *d).relu(), *e).relu()
    torch.testing.assert_close(decoder(z), F.linear(hidden, *f).view(2, *shape))
    plain = MLP(2, 3, 1)
    assert isinstance(plain[1], nn.ReLU)


def test_convolutional_networks_compute_what_their_layers_do():
    torch.manual_seed(0)
    x, z, shape = torch.rand(2, 3, 8, 12), torch.randn(2, 3), (3, 8, 12)
    encoder, decoder = ConvEncoder(shape, 5, 6), ConvDecoder(shape, 5, 3)
    kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    a, b, c, d, e, f = [
        (m.weight, m.bias)
        for net in (encoder, decoder)
        for m in net.modules()
        if isinstance(m, kinds)
    ]
    sizes = [(5, 3, 4, 4), (10, 5, 4, 4), (6, 60), (60, 3), (10, 5, 4, 4), (5, 3, 4, 4)]
    assert [tuple(w.shape) for w, _ in (a, b, c, d, e, f)] == sizes
    assert not any(bias is None for _, bias in (a, b, c, d, e, f))
    half = {"stride": 2, "padding": 1}
    hidden = F.silu(F.conv2d(F.silu(F.conv2d(x, *a, **half)), *b, **half))
    torch.testing.assert_close(encoder(x), F.linear(hidden.flatten(1), *c))
    hidden = F.silu(F.linear(z, *d)).view(2, 10, 2, 3)
    hidden = F.silu(F.conv_transpose2d(hidden, *e, **half))
    torch.testing.assert_close(decoder(z), F.conv_transpose2d(hidden, *f, **half))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (1, 8, 12)])
def test_convolutions_halve_twice_and_come_back(shape):
    c, h, w = shape
    encoder, decoder = ConvEncoder(shape, 6, 10), ConvDecoder(shape, 6, 5)
    x, sizes = torch.rand(2, *shape), []
    for layer in (*encoder.net, *decoder.net):
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(
                lambda m, i, o: sizes.append(tuple(o.shape[1:]))
            )
    vae = VAE(encoder, decoder)
    mu, logvar = vae.encode(x)
    assert mu.shape == logvar.shape == (2, 5)
    assert vae.decode(mu).shape == x.shape
    half, quarter = (6, h // 2, w // 2), (12, h // 4, w // 4)
    assert sizes == [half, quarter, half, shape]
    negative_elbo(vae, x)["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in vae.parameters())  # all take part


def test_convolutions_refuse_sizes_that_do_not_halve_twice():
    with pytest.raises(ValueError, match=r"30 x 28.*multiples of 4"):
        ConvDecoder((1, 30, 28), 4, 2)
    with pytest.raises(ValueError, match=r"28 x 7.*multiples of 4"):
        ConvDecoder((1, 28, 7), 4, 2)


# --- the model -----------------------------------------------------------------


def small_vae(shape=(1, 2, 2), latent=1, n=1, seed=0, scale=3.0):
    torch.manual_seed(seed)
    encoder = MLPEncoder(shape, (6,), 2 * latent, activation=nn.Tanh)
    decoder = MLPDecoder(shape, (6,), latent, activation=nn.Tanh)
    bend(decoder, scale)
    return VAE(encoder, decoder, n)


def test_encode_gives_mu_first_then_logvar():
    class Known(nn.Module):
        def forward(self, x):
            return torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(len(x), 4)

    mu, logvar = VAE(Known(), MLPDecoder((1, 2, 2), (), 2)).encode(
        torch.zeros(5, 1, 2, 2)
    )
    torch.testing.assert_close(mu, torch.tensor([1.0, 2.0]).expand(5, 2))
    torch.testing.assert_close(logvar, torch.tensor([3.0, 4.0]).expand(5, 2))


@pytest.mark.parametrize("outputs", [2, 3, 5, 6])
def test_an_encoder_with_another_number_of_outputs_is_refused(outputs):
    shape = (1, 2, 2)
    vae = VAE(MLPEncoder(shape, (), outputs), MLPDecoder(shape, (), 2))
    with pytest.raises(ValueError, match=f"gives {outputs} numbers.*it must give 4"):
        negative_elbo(vae, torch.zeros(4, *shape))
    with pytest.raises(ValueError, match=f"gives {outputs} numbers"):
        iwae_bound(vae, torch.zeros(4, *shape), k=2)


def test_elbo_terms_with_given_noise():
    vae = small_vae((3, 4, 4), latent=2, n=16)
    x, eps = torch.randint(0, 17, (5, 3, 4, 4)) / 16, torch.randn(5, 2)
    mu, logvar = vae.encode(x)
    q = Normal(mu, (0.5 * logvar).exp())
    pixels = Binomial(16, logits=vae.decoder(mu + q.scale * eps))
    recon, kl = elbo_terms(vae, x, eps)
    expected = Independent(pixels, 3).log_prob(16 * x)
    torch.testing.assert_close(recon, expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(kl, kl_divergence(q, Normal(0.0, 1.0)))
    # the gradient is that of the same computation, by finite differences
    vae.double()

    def loss(bias):
        with torch.no_grad():
            vae.encoder.net[-1].bias.copy_(bias)
        recon, kl = elbo_terms(vae, x.double(), eps.double())
        return recon.sum() - kl.sum()

    bias = vae.encoder.net[-1].bias.detach().clone()
    vae.zero_grad()
    loss(bias).backward()
    grad, h = vae.encoder.net[-1].bias.grad.clone(), 1e-5
    for i, step in enumerate(h * torch.eye(len(bias), dtype=bias.dtype)):
        slope = (loss(bias + step) - loss(bias - step)) / (2 * h)
        torch.testing.assert_close(grad[i], slope.detach(), rtol=1e-6, atol=1e-6)


def test_reconstruct_and_image_decoder_are_the_sigmoid_of_the_logits():
    vae = small_vae((1, 4, 4), latent=2)
    x = torch.rand(5, 1, 4, 4)
    mu, _ = vae.encode(x)
    logits = vae.decode(mu)
    mean = Bernoulli(logits=logits).mean
    torch.testing.assert_close(ImageDecoder(vae)(mu), mean)
    torch.testing.assert_close(vae.reconstruct(x), mean)
    assert mean.min() < 0.3 and mean.max() > 0.7  # far enough from 0.5 to tell
    state = ImageDecoder(vae).state_dict()  # the decoder alone, for the page
    assert sum(t.numel() for t in state.values()) == count(vae.decoder)


def test_sample_decodes_draws_from_the_prior():
    shape = (1, 1, 2)
    vae = VAE(MLPEncoder(shape, (), 4), MLPDecoder(shape, (), 2))
    with torch.no_grad():  # logits = z, so that the draws can be read off
        vae.decoder.net[0].weight.copy_(torch.eye(2))
        vae.decoder.net[0].bias.zero_()
    images = vae.sample(50_000, torch.Generator().manual_seed(0))
    z = images.double().logit().flatten(1)
    cdf = Normal(0.0, 1.0).cdf(z.sort(0).values)
    ranks = torch.arange(1, 50_001)[:, None] / 50_000
    assert (cdf - ranks).abs().max() < 1.95 / 50_000**0.5
    assert torch.corrcoef(z.T)[0, 1].abs() < 0.02
    again = vae.sample(50_000, torch.Generator().manual_seed(0))
    other = vae.sample(50_000, torch.Generator().manual_seed(1))
    assert torch.equal(images, again) and not torch.equal(images, other)


def watched(vae):
    """Note the number of rows of each call of the decoder, and if it kept gradients."""
    calls = []
    vae.decoder.register_forward_hook(
        lambda module, args, out: calls.append((len(args[0]), torch.is_grad_enabled()))
    )
    return calls


def test_what_is_not_trained_on_keeps_no_gradients():
    vae, x = small_vae(), torch.rand(5, 1, 2, 2)
    slow = autoregressive()
    calls, slow_calls = watched(vae), watched(slow)
    vae.reconstruct(x), vae.sample(5), evaluate(vae, x), iwae_bound(vae, x, 2)
    slow.sample(5)
    assert calls == [(5, False)] * 5 and slow_calls == [(5, False)] * 4
    negative_elbo(vae, x)
    assert calls[-1] == (5, True)


def test_a_large_set_is_evaluated_in_batches():
    vae = small_vae()
    calls = watched(vae)
    evaluate(vae, torch.rand(2300, 1, 2, 2))
    evaluate(vae, torch.rand(7, 1, 2, 2), batch_size=3)
    assert [rows for rows, _ in calls] == [1000, 1000, 300, 3, 3, 1]


def test_everything_stays_on_the_device_of_the_model(monkeypatch):
    # The device "meta" has shapes and no numbers: a tensor made elsewhere is refused.
    vae = small_vae((1, 2, 2), latent=2, n=16).to("meta")
    x = torch.rand(3, 1, 2, 2, device="meta")
    assert vae.sample(3).device.type == vae.reconstruct(x).device.type == "meta"
    assert log_likelihood(x, x, 16).device.type == "meta"
    assert interpolate(x[0, 0, 0], x[0, 0, 1], 5).device.type == "meta"
    negative_elbo(vae, x)["loss"].backward()  # and does not look at the values
    model, x = linear_case()
    far = LinearGaussian(model.weight.to("meta"), model.bias.to("meta"), model.sigma)
    assert far.posterior(x.to("meta"))[0].device.type == "meta"
    monkeypatch.setattr(MultivariateNormal, "_validate_args", False)  # nor does this
    assert far.log_marginal(x.to("meta")).device.type == "meta"


def test_no_images_have_no_bounds():
    assert iwae_bound(small_vae(n=2), torch.rand(0, 1, 2, 2), 3).shape == (0,)


def test_interpolate_walks_in_equal_steps_from_end_to_end():
    a, b = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([3.0, 2.0, 0.0])
    path = interpolate(a, b, 5)
    assert path.shape == (5, 3)
    torch.testing.assert_close(path[0], a)
    torch.testing.assert_close(path[-1], b)
    torch.testing.assert_close(path[2], (a + b) / 2)
    torch.testing.assert_close(path.diff(dim=0), ((b - a) / 4).expand(4, 3))


# --- the exact case: x = W z + b + noise ---------------------------------------


def linear_case(orthogonal=True, seed=0):
    """A LinearGaussian in double precision, and data of its own in about 0..1."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 3, generator=g, dtype=torch.float64)
    if orthogonal:  # then the true posterior has independent dimensions
        weight = torch.linalg.qr(weight).Q * torch.tensor([0.12, 0.08, 0.03]).double()
    else:
        weight = 0.1 * weight
    bias = torch.full((6,), 0.5, dtype=torch.float64)
    noise = torch.randn(40, 9, generator=g, dtype=torch.float64)
    x = noise[:, :3] @ weight.T + bias + 0.05 * noise[:, 3:]
    return LinearGaussian(weight, bias, 0.05), x.clamp(0, 1)


def test_log_marginal_is_the_score_of_probabilistic_pca():
    from sklearn.datasets import load_iris
    from sklearn.decomposition import PCA

    data = load_iris().data
    pca = PCA(n_components=2, svd_solver="full").fit(data[:100])
    scale = (pca.explained_variance_ - pca.noise_variance_) ** 0.5
    weight, bias = torch.tensor(pca.components_.T * scale), torch.tensor(pca.mean_)
    model = LinearGaussian(weight, bias, pca.noise_variance_**0.5)
    expected = torch.tensor(pca.score_samples(data))
    torch.testing.assert_close(model.log_marginal(torch.tensor(data)), expected)


def test_posterior_obeys_bayes():
    model, x = linear_case(orthogonal=False)
    mean, covariance = model.posterior(x)
    z = torch.randn(
        40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    prior = Normal(0.0, 1.0).log_prob(z).sum(1)
    likelihood = Normal(z @ model.weight.T + model.bias, model.sigma).log_prob(x).sum(1)
    posterior = MultivariateNormal(mean, covariance).log_prob(z)
    torch.testing.assert_close(prior + likelihood - posterior, model.log_marginal(x))


def test_bound_touches_at_the_exact_posterior_and_nowhere_else():
    model, x = linear_case(orthogonal=True)
    mean, covariance = model.posterior(x)
    logvar = covariance.diag().log().expand_as(mean)
    exact = model.log_marginal(x)
    torch.testing.assert_close(model.elbo(x, mean, logvar), exact)
    for shift, factor in [(0.1, 0.0), (0.0, 0.3), (0.0, -0.3), (-0.5, 1.0)]:
        assert (model.elbo(x, mean + shift, logvar + factor) < exact - 1e-3).all()


@pytest.mark.parametrize("orthogonal", [True, False])
def test_gap_is_the_divergence_from_the_posterior(orthogonal):
    model, x = linear_case(orthogonal)
    g = torch.Generator().manual_seed(2)
    mu, logvar = torch.randn(2, 40, 3, dtype=torch.float64, generator=g)
    q = MultivariateNormal(mu, torch.diag_embed(logvar.exp()))
    gap = kl_divergence(q, MultivariateNormal(*model.posterior(x)))
    assert gap.min() > 0.1
    torch.testing.assert_close(model.log_marginal(x) - model.elbo(x, mu, logvar), gap)


def test_linear_gaussian_takes_single_precision():
    model, x = linear_case()
    single = LinearGaussian(model.weight.float(), model.bias.float(), model.sigma)
    mu, logvar = torch.zeros(40, 3), torch.full((40, 3), -1.0)
    for result, expected in [
        (single.log_marginal(x.float()), model.log_marginal(x)),
        (single.posterior(x.float())[0], model.posterior(x)[0]),
        (
            single.elbo(x.float(), mu, logvar),
            model.elbo(x, mu.double(), logvar.double()),
        ),
    ]:
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-3)


class GaussianVAE(VAE):
    """The library's VAE with Gaussian pixels: then everything about it is known."""

    def log_likelihood(self, x, z):
        return Normal(self.decode(z), self.sigma).log_prob(x).flatten(1).sum(1)


def linear_vae(widen=0.0):
    """A VAE that is the linear case, its encoder the exact posterior, or wider."""
    model, x = linear_case()
    shape = (1, 2, 3)
    vae = GaussianVAE(MLPEncoder(shape, (), 6), MLPDecoder(shape, (), 3)).double()
    vae.sigma = model.sigma
    mean_of_bias, covariance = model.posterior(torch.zeros(1, 6, dtype=torch.float64))
    to_mean, _ = model.posterior(torch.eye(6, dtype=torch.float64) + model.bias)
    logvar = covariance.diag().log() + widen
    with torch.no_grad():
        vae.encoder.net[0].weight.copy_(torch.cat([to_mean.T, torch.zeros(3, 6)]))
        vae.encoder.net[0].bias.copy_(torch.cat([mean_of_bias[0], logvar]))
        vae.decoder.net[0].weight.copy_(model.weight)
        vae.decoder.net[0].bias.copy_(model.bias)
    return vae, model, x, x.view(-1, *shape)


def test_monte_carlo_bound_agrees_with_the_exact_one():
    torch.manual_seed(0)
    vae, model, x, images = linear_vae(widen=0.7)
    draws = []
    with torch.no_grad():
        mu, logvar = vae.encode(images)
        for _ in range(2000):
            recon, kl = elbo_terms(vae, images)
            draws.append(recon - kl.sum(1))
    assert close_to(torch.stack(draws), model.elbo(x, mu, logvar))
    assert (model.elbo(x, mu, logvar) < model.log_marginal(x) - 0.1).all()


def test_every_importance_weight_is_the_marginal_at_the_exact_posterior():
    # p(x, z) / q(z|x) = p(x) whatever z is: no noise is left, for any k.
    vae, model, x, images = linear_vae()
    for k in (1, 2, 13):
        torch.manual_seed(k)
        torch.testing.assert_close(iwae_bound(vae, images, k), model.log_marginal(x))


# --- a nonlinear model small enough to integrate and to enumerate --------------

GRID = torch.linspace(-9, 9, 6001, dtype=torch.float64)  # values of z


def all_images(shape, n=1):
    """Every image of this shape with pixels k/n: ((n+1)^pixels, *shape)."""
    pixels = math.prod(shape)
    rows = list(itertools.product(range(n + 1), repeat=pixels))
    return torch.tensor(rows).view(-1, *shape) / n


def joint_on_grid(vae, x, n=1):
    """log p(x, z) of images (B, ...) at each z of the grid: (B, 6001), in double."""
    vae = vae.double()
    with torch.no_grad():
        if isinstance(vae, AutoregressiveVAE):
            logits = torch.stack(
                [
                    vae.decoder(GRID[:, None], i.double().expand(6001, *i.shape))
                    for i in x
                ]
            )
        else:
            logits = vae.decoder(GRID[:, None]).expand(len(x), 6001, *x.shape[1:])
    pixels = Independent(Binomial(n, logits=logits), x.dim() - 1)
    counts = (n * x[:, None]).round().double()
    return pixels.log_prob(counts) + Normal(0.0, 1.0).log_prob(GRID)


@pytest.fixture(scope="module")
def tiny():
    """A VAE with one latent number, its 16 images, log p(x) and the ELBO of each."""
    vae = small_vae(seed=1, scale=4.0)
    x = all_images((1, 2, 2))
    joint = joint_on_grid(vae, x)
    with torch.no_grad():
        mu, logvar = vae.encode(x.double())
    log_q = Normal(mu, (0.5 * logvar).exp()).log_prob(GRID)
    exact = torch.trapezoid(joint.exp(), GRID).log()
    elbo = torch.trapezoid(log_q.exp() * (joint - log_q), GRID)
    torch.testing.assert_close(exact.exp().sum(), torch.tensor(1.0).double())
    return vae.float(), x, exact.float(), elbo.float()


def bounds(vae, x, k, repeats):
    """Independent draws of the bound: (repeats, B)."""
    many = x.repeat(repeats, 1, 1, 1)
    return iwae_bound(vae, many, k).view(repeats, len(x))


def test_elbo_is_below_log_p_and_has_the_right_mean(tiny):
    vae, x, exact, elbo = tiny
    assert (elbo < exact).all() and (exact - elbo).max() > 0.1
    torch.manual_seed(0)
    with torch.no_grad():
        recon, kl = elbo_terms(vae, x.repeat(20_000, 1, 1, 1))
    draws = (recon - kl.sum(1)).view(20_000, 16)
    assert close_to(draws, elbo)


def test_importance_bound_with_one_sample_is_the_elbo(tiny):
    vae, x, _, elbo = tiny
    torch.manual_seed(1)
    assert close_to(bounds(vae, x, 1, 20_000), elbo)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_importance_weights_are_unbiased(tiny, k):
    # The mean weight has the mean p(x) exactly, for each k.
    vae, x, exact, _ = tiny
    torch.manual_seed(k)
    assert close_to(bounds(vae, x, k, 10_000).exp(), exact.exp())


def test_importance_bound_rises_to_log_p(tiny):
    vae, x, exact, elbo = tiny
    torch.manual_seed(2)
    previous = elbo
    for k in (2, 5, 20):
        draws = bounds(vae, x, k, 4000)
        mean, error = draws.mean(0), draws.std(0) / 4000**0.5
        assert (mean <= exact + 4.5 * error).all()
        assert (mean.sum() - previous.sum()) > 4 * error.norm()  # clearly up
        previous = mean
    last = bounds(vae, x, 2000, 20)
    torch.testing.assert_close(last.mean(0), exact, atol=0.02, rtol=0)
    assert (last.mean(0) - exact).abs().max() < 0.2 * (elbo - exact).abs().max()


def test_the_importance_bound_needs_a_sample(tiny):
    vae, x, *_ = tiny
    with pytest.raises(ValueError, match="k is 0; the bound needs at least one"):
        iwae_bound(vae, x, 0)


def test_evaluate_averages_over_images_not_over_batches():
    # The decoder ignores z here: nothing is random and each part is known.
    vae = small_vae((1, 2, 2), latent=3, n=4)
    x = torch.randint(0, 5, (16, 1, 2, 2)) / 4
    with torch.no_grad():
        vae.decoder.net[0].weight.zero_()
        mu, logvar = vae.encode(x)
        logits = vae.decode(torch.zeros(16, 3))
    q = Independent(Normal(mu, (0.5 * logvar).exp()), 1)
    prior = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    kl = kl_divergence(q, prior).mean().item()
    recon = Binomial(4, logits=logits).log_prob(4 * x).flatten(1).sum(1).mean().item()
    for batch_size in (3, 5, 16, 1000):
        parts = evaluate(vae, x, batch_size)
        expected = {"elbo": recon - kl, "recon": recon, "kl": kl}
        assert parts == pytest.approx(expected, abs=1e-4)


# --- the loss ------------------------------------------------------------------


def constant_vae(kls):
    """Encoder of known divergence: mu_d = sqrt(2 kl_d), variance 1, whatever x is;
    the decoder ignores z, so that only the divergence moves the encoder."""
    latent = len(kls)
    vae = small_vae((1, 2, 2), latent=latent)
    with torch.no_grad():
        vae.decoder.net[0].weight.zero_()
        vae.encoder.net[-1].weight.zero_()
        mu = (2 * torch.tensor(kls)).sqrt()
        vae.encoder.net[-1].bias.copy_(torch.cat([mu, torch.zeros(latent)]))
    return vae


def test_loss_is_minus_the_bound():
    vae = small_vae((1, 3, 3), latent=2)
    x = torch.rand(8, 1, 3, 3)
    torch.manual_seed(5)
    recon, kl = elbo_terms(vae, x)
    torch.manual_seed(5)
    parts = negative_elbo(vae, x)
    assert set(parts) == {"loss", "recon", "kl"}
    assert all(value.shape == () for value in parts.values())
    torch.testing.assert_close(parts["recon"], recon.mean())
    torch.testing.assert_close(parts["kl"], kl.sum(1).mean())
    torch.testing.assert_close(parts["loss"], (kl.sum(1) - recon).mean())
    assert elbo_loss(recon, kl) == parts
    nothing_told = torch.zeros(8, 2)  # and no free bits to begin with
    assert elbo_loss(recon, nothing_told)["loss"] == -recon.mean()


@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0])
def test_beta_weighs_the_divergence_only(beta):
    vae, x = constant_vae([0.3, 2.0]), torch.rand(8, 1, 2, 2)
    parts = negative_elbo(vae, x, beta=beta)
    assert parts["kl"].item() == pytest.approx(2.3, abs=1e-5)  # reported unweighted
    expected = beta * 2.3 - parts["recon"].item()
    assert parts["loss"].item() == pytest.approx(expected, abs=1e-5)
    parts["loss"].backward()
    grad = vae.encoder.net[-1].bias.grad[:2]  # d kl / d mu = mu
    expected = beta * torch.tensor([0.6, 4.0]).sqrt()
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5)


def test_dimensions_below_the_free_bits_are_not_charged_nor_moved():
    vae, x = constant_vae([0.1, 0.4, 2.0]), torch.rand(8, 1, 2, 2)
    parts = negative_elbo(vae, x, beta=3.0, free_bits=0.5)
    assert parts["kl"].item() == pytest.approx(2.5, abs=1e-5)  # as it is
    expected = 3.0 * (0.5 + 0.5 + 2.0) - parts["recon"].item()
    assert parts["loss"].item() == pytest.approx(expected, abs=1e-4)
    parts["loss"].backward()
    grad = vae.encoder.net[-1].bias.grad  # mu's, then logvar's
    assert grad[[0, 1, 3, 4]].eq(0).all()
    assert grad[2].item() == pytest.approx(3.0 * 2.0, abs=1e-4)


def test_free_bits_look_at_the_mean_over_the_batch():
    # Kingma et al. 2016, eq. 15: the minimum applies to the mean, not to each image.
    class Halves(nn.Module):
        shape = (1, 1, 1)

        def __init__(self):
            super().__init__()
            self.mu = nn.Parameter(torch.tensor([[0.0], [2.0]]))  # kl 0 and 2

        def forward(self, x):
            return torch.cat([self.mu, torch.zeros(2, 1)], dim=1)

    vae = VAE(Halves(), MLPDecoder((1, 1, 1), (), 1))
    nn.init.zeros_(vae.decoder.net[0].weight)
    parts = negative_elbo(vae, torch.rand(2, 1, 1, 1), free_bits=0.8)
    charged = (parts["loss"] + parts["recon"]).item()
    assert charged == pytest.approx(1.0, abs=1e-6)  # not (0.8 + 2) / 2
    parts["loss"].backward()
    assert vae.encoder.mu.grad.flatten().tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("call", [negative_elbo, evaluate])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.full((2, 1, 4, 4), 255.0), r"values from 255 to 255; expected 0\.\.1"),
        (torch.rand(2, 1, 4, 4) - 0.5, r"values from -0\.\d+ to .*expected 0\.\.1"),
        (torch.full((2, 1, 4, 4), float("nan")), r"values from nan to nan"),
        (torch.rand(2, 1, 28, 28), r"\(2, 1, 28, 28\).*built for \(B, 1, 4, 4\)"),
        (torch.rand(2, 3, 4, 4), r"\(2, 3, 4, 4\).*built for"),
        (torch.rand(1, 4, 4), r"\(1, 4, 4\).*built for"),
        (torch.rand(2, 16), r"\(2, 16\).*built for"),
        (torch.full((2, 1, 4, 4), 255, dtype=torch.uint8), r"torch\.uint8.*floats"),
        (torch.rand(2, 1, 4, 4) > 0.5, r"torch\.bool; expected floats"),
    ],
    ids=["255", "negative", "nan", "size", "channels", "one", "flat", "uint8", "bool"],
)
def test_images_that_do_not_fit_are_refused(call, x, message):
    vae = small_vae((1, 4, 4), latent=2)
    with pytest.raises(ValueError, match=message):
        call(vae, x)
    with pytest.raises(ValueError, match=message):
        iwae_bound(vae, x, k=2)


def test_one_bad_pixel_is_enough():
    vae, x = small_vae((1, 4, 4), latent=2), torch.rand(2, 1, 4, 4)
    for bad in (float("nan"), 1.01, -0.01):
        spoiled = x.clone()
        spoiled[1, 0, 2, 3] = bad
        with pytest.raises(ValueError, match="values from"):
            negative_elbo(vae, spoiled)
    negative_elbo(vae, x)


@pytest.mark.parametrize("call", [negative_elbo, evaluate, iwae_bound])
def test_pixels_between_whole_counts_are_refused(call):
    extra = (2,) if call is iwae_bound else ()
    vae = small_vae((1, 4, 4), latent=2, n=16)
    for value in (0.03, 0.72, 1 - 1 / 255):
        x = torch.full((2, 1, 4, 4), 0.5)
        x[1, 0, 2, 3] = value
        message = rf"a value {value:g}; with n = 16 .*multiple of 1/16.*Round them"
        with pytest.raises(ValueError, match=message):
            call(vae, x, *extra)
        call(vae, (16 * x).round() / 16, *extra)
        call(small_vae((1, 4, 4), latent=2), x, *extra)  # a score, with n = 1
    vae.n = 255  # single precision comes near enough to k/255, however it is reached
    counts = torch.arange(256.0).view(-1, 1, 4, 4)
    near = [torch.nextafter(counts / 255, torch.tensor(end)) for end in (0.0, 1.0)]
    for x in (counts / 255, counts * (1 / 255), counts.double() / 255, *near):
        call(vae.to(x), x, *extra)


# --- a decoder that reads the pixels before ------------------------------------


def autoregressive(shape=(1, 2, 2), hidden=3, latent=1, n=1, seed=3):
    torch.manual_seed(seed)
    decoder = AutoregressiveDecoder(shape, hidden, latent)
    with torch.no_grad():
        decoder.weight.mul_(20)
        decoder.out.mul_(10)
    return AutoregressiveVAE(MLPEncoder(shape, (4,), 2 * latent), decoder, n)


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 2, 2)])
def test_a_pixel_changes_later_logits_and_all_of_them(shape):
    decoder = autoregressive(shape, latent=2).decoder
    d = math.prod(shape)
    z, x = torch.randn(1, 2), torch.rand(1, *shape)
    logits = decoder(z, x)
    assert logits.shape == x.shape
    for j in range(d):
        other = x.clone().flatten(1)
        other[:, j] += 0.5
        changed = (decoder(z, other.view_as(x)) != logits).flatten()
        assert changed.nonzero().flatten().tolist() == list(range(j + 1, d))
    jacobian = torch.autograd.functional.jacobian(lambda v: decoder(z, v), x)
    jacobian = jacobian.view(d, d)
    strictly_lower = torch.ones(d, d).tril(-1).bool()
    assert torch.equal(jacobian != 0, strictly_lower)
    shift = torch.autograd.functional.jacobian(lambda v: decoder(v, x), z)
    assert (shift.view(d, 2) != 0).all()  # z reaches each pixel


def test_each_pixel_has_tanh_units_of_its_own():
    decoder = autoregressive((1, 2, 3), hidden=4, latent=2).decoder
    with torch.no_grad():
        decoder.bias.normal_()
    x, z = torch.rand(5, 1, 2, 3), torch.randn(5, 2)
    pixels, from_z = x.flatten(1), decoder.from_z(z)
    for i, weight in enumerate(decoder.weight.view(6, 4, 6)):
        total = pixels[:, :i] @ weight[:, :i].T + decoder.bias[4 * i : 4 * i + 4]
        expected = total.tanh() @ decoder.out[i] + from_z[:, i]
        torch.testing.assert_close(decoder(z, x).flatten(1)[:, i], expected)


def test_masked_weights_get_no_gradient():
    vae = autoregressive((1, 3, 3), hidden=2)
    assert {k: tuple(p.shape) for k, p in vae.decoder.named_parameters()} == {
        "weight": (18, 9),
        "bias": (18,),
        "out": (9, 2),
        "from_z.weight": (9, 1),
        "from_z.bias": (9,),
    }
    negative_elbo(vae, torch.rand(4, 1, 3, 3))["loss"].backward()
    grad = vae.decoder.weight.grad.view(9, 2, 9) != 0
    allowed = torch.ones(9, 9).tril(-1).bool()[:, None].expand(9, 2, 9)
    assert torch.equal(grad, allowed)


@pytest.mark.parametrize(("shape", "n"), [((1, 2, 2), 1), ((1, 1, 2), 3)])
def test_autoregressive_probabilities_sum_to_one_and_samples_follow_them(shape, n):
    vae = autoregressive(shape, n=n)
    x = all_images(shape, n)  # 16 images in both cases
    for z in (-2.0, 0.0, 1.5):
        log_p = vae.log_likelihood(x, torch.full((16, 1), z))
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    exact = torch.trapezoid(joint_on_grid(vae, x, n).exp(), GRID)
    assert exact.sum().item() == pytest.approx(1, abs=1e-6)
    vae.float()
    total = 40_000
    samples = vae.sample(total, torch.Generator().manual_seed(0))
    assert samples.shape == (total, *shape)
    base = (n + 1) ** torch.arange(math.prod(shape) - 1, -1, -1)
    codes = (n * samples).flatten(1).round().long() @ base
    assert torch.equal(x[codes], samples)  # nothing but whole counts
    seen = torch.bincount(codes, minlength=16)
    expected = total * exact
    chi2 = ((seen - expected).square() / expected).sum()
    assert chi2 < 37.7  # 15 degrees of freedom: 1 of 1000 true samples is beyond
    again = vae.sample(total, torch.Generator().manual_seed(0))
    assert torch.equal(samples, again)


def test_autoregressive_bound_is_below_its_log_p():
    vae = autoregressive()
    x = all_images((1, 2, 2))
    exact = torch.trapezoid(joint_on_grid(vae, x).exp(), GRID).log().float()
    vae.float()
    torch.manual_seed(0)
    draws = bounds(vae, x, 3, 5000)
    assert close_to(draws.exp(), exact.exp())
    assert (draws.mean(0) < exact).all()


# --- training ------------------------------------------------------------------


def digits():
    """scikit-learn's 8 x 8 digits, k/16: training and held-out images."""
    from sklearn.datasets import load_digits

    x = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    return x[:1500], x[1500:]


def digit_batches(x, seed, size=128):
    g = torch.Generator().manual_seed(seed)
    while True:
        yield x[torch.randint(len(x), (size,), generator=g)], None


def digit_vae(seed=0):
    torch.manual_seed(seed)
    shape = (1, 8, 8)
    return VAE(MLPEncoder(shape, (64,), 16), MLPDecoder(shape, (64,), 8), n=16)


def test_step_is_adam_with_a_rate_that_rises_and_falls():
    x, _ = digits()
    steps, lr, options = 20, 0.01, {"beta": 0.5, "free_bits": 0.1}
    batches = [b for b, _ in zip(digit_batches(x, 0), range(steps), strict=False)]
    vae, plain = digit_vae(), digit_vae()
    torch.manual_seed(1)
    step = make_step(vae, steps, lr=lr, **options)
    history = [step(batch)["loss"].item() for batch in batches]
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(plain.parameters())
    # up to lr in the first tenth (two steps), then down a line that ends in zero
    rates = [lr / 2, lr] + [lr * (steps - k) / 18 for k in range(2, steps)]
    for (batch, _), rate, seen in zip(batches, rates, history, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        loss = negative_elbo(plain, batch, **options)["loss"]
        assert seen == pytest.approx(loss.item(), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for mine, theirs in zip(vae.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_defaults_of_the_step_are_those_of_the_bound():
    x, _ = digits()
    vae, plain = digit_vae(), digit_vae()
    torch.manual_seed(1)
    metrics = make_step(vae, 10)((x[:64], None))  # the first of 10 steps: full rate
    torch.manual_seed(1)
    recon, kl = elbo_terms(plain, x[:64])
    loss = kl.sum(1).mean() - recon.mean()
    assert set(metrics) == {"loss", "recon", "kl"}
    assert metrics["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    loss.backward()
    torch.optim.Adam(plain.parameters(), 8e-3).step()
    for mine, theirs in zip(vae.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def train(seed, max_steps):
    train_x, _ = digits()
    vae = digit_vae(seed)
    batches = digit_batches(train_x, seed)
    fit(make_step(vae, max_steps), batches, max_steps, progress=False)
    return vae


def test_training_beats_the_untrained_model_and_independent_pixels():
    train_x, test_x = digits()
    untrained = evaluate(digit_vae(), test_x)["elbo"]
    vae = train(0, 800)
    trained = evaluate(vae, test_x)["elbo"]
    # independent pixels, of the same kind: each Binomial has its own mean brightness
    mean = train_x.mean(0).clamp(1e-3, 1 - 1e-3)
    baseline = Binomial(16, mean).log_prob(16 * test_x).flatten(1).sum(1).mean().item()
    assert untrained < baseline < trained
    assert trained > baseline + 80  # nats per image
    tighter = iwae_bound(vae, test_x, 50).mean().item()
    assert tighter > trained + 0.5


def test_the_page_trains_the_chapter_model():
    program = digits_program()
    vae, (phase,) = program.modules["vae"], program.phases
    x, eps = digits()[0][:5], torch.randn(5, 2)
    mu, logvar = vae.encode(x)
    q = Normal(mu, (0.5 * logvar).exp())
    recon = Binomial(16, logits=vae.decode(mu + q.scale * eps)).log_prob(16 * x)
    kl = kl_divergence(q, Normal(0.0, 1.0)).sum(1)
    loss = (2.5 * kl - recon.flatten(1).sum(1)).mean()
    torch.testing.assert_close(phase.loss(x=x, eps=eps, beta=2.5)["loss"], loss)
    views = program.views(shown=x)
    torch.testing.assert_close(views["codes"], mu)
    rows = views["images"].view(10, 10, 1, 8, 8)  # z1 to the right, z2 upwards
    for row, column, z in [
        (0, 0, (-3.0, 3.0)),
        (0, 9, (3.0, 3.0)),
        (9, 0, (-3.0, -3.0)),
    ]:
        mean = Bernoulli(logits=vae.decode(torch.tensor([z]))).mean[0]
        torch.testing.assert_close(rows[row, column], mean)


def test_the_seed_decides_the_run():
    first, again, other = (list(train(s, 30).parameters()) for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_an_autoregressive_decoder_has_no_image_for_z_alone():
    decoder = AutoregressiveDecoder((1, 2, 2), hidden=2, latent=3)
    vae = AutoregressiveVAE(MLPEncoder((1, 2, 2), (4,), 6), decoder)
    for call in (
        lambda: vae.decode(torch.zeros(1, 3)),
        lambda: vae.reconstruct(torch.zeros(1, 1, 2, 2)),
    ):
        with pytest.raises(TypeError, match="draws pixel by pixel; use sample"):
            call()
