import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mega_pl.functional import discriminant
from mega_pl.functional.discriminant import class_means, fit_discriminant


def clusters(n_classes=6, each=5, width=12, noise=0.1, nuisance=10.0, seed=0):
    """Points around class centres, with one direction that varies more within classes than the centres differ."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(n_classes, width, generator=draw)
    classes = torch.arange(n_classes).repeat_interleave(each)
    points = centres[classes] + noise * torch.randn(n_classes * each, width, generator=draw)
    points[:, 0] += nuisance * torch.randn(n_classes * each, generator=draw)
    return points, classes


def cosine_gap(points, classes):
    """Least cosine within a class minus greatest cosine between classes."""
    cosines, same = points @ points.T, classes[:, None] == classes[None]
    return float(cosines[same].min() - cosines[~same].max())


def test_class_means_are_those_of_a_loop():
    points, classes = clusters()
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(1))
    means = class_means(points[order], classes[order])
    for c in range(6):
        torch.testing.assert_close(means[c], points[classes == c].mean(0))


def test_a_class_without_samples_has_a_mean_of_zero():
    assert class_means(torch.ones(2, 3), torch.tensor([0, 2])).tolist() == [[1] * 3, [0] * 3, [1] * 3]


@pytest.mark.parametrize("shrinkage", [0.01, 0.1, 1.0])
def test_projection_whitens_the_shrunk_scatter(shrinkage):
    points, classes = clusters()
    space = fit_discriminant(points, classes, shrinkage=shrinkage)
    x = points.double().numpy()
    within = np.concatenate([x[classes == c] - x[classes == c].mean(0) for c in range(6)])
    scatter = within.T @ within / len(x)
    shrunk = (1 - shrinkage) * scatter + shrinkage * np.trace(scatter) / 12 * np.eye(12)
    w = space.projection.double().numpy()
    np.testing.assert_allclose(w.T @ shrunk @ w, np.eye(12), atol=1e-5)
    np.testing.assert_allclose(space.mean.numpy(), x.mean(0), atol=1e-6)


def test_cosines_are_those_of_the_inverse_scatter():
    points, classes = clusters()
    space = fit_discriminant(points, classes, shrinkage=0.2)
    x = points.double().numpy()
    within = np.concatenate([x[classes == c] - x[classes == c].mean(0) for c in range(6)])
    scatter = within.T @ within / len(x)
    inverse = np.linalg.inv(0.8 * scatter + 0.2 * np.trace(scatter) / 12 * np.eye(12))
    gram = (x - x.mean(0)) @ inverse @ (x - x.mean(0)).T
    lengths = np.sqrt(np.diag(gram))
    np.testing.assert_allclose((space(points) @ space(points).T).numpy(), gram / np.outer(lengths, lengths), atol=1e-4)


def test_whitening_brings_classes_together_that_cosines_alone_do_not():
    points, classes = clusters()
    assert cosine_gap(F.normalize(points - points.mean(0), dim=-1), classes) < 0
    assert cosine_gap(fit_discriminant(points, classes, shrinkage=0.01)(points), classes) > 0.3


def test_points_are_unit_vectors_of_any_leading_shape_and_dtype():
    points, classes = clusters()
    space = fit_discriminant(points, classes)
    out = space(points.view(6, 5, 12).double())
    assert out.shape == (6, 5, 12)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(6, 5))
    torch.testing.assert_close(out.flatten(0, 1), space(points))


def test_names_and_order_of_the_classes_do_not_matter():
    points, classes = clusters()
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(2))
    renamed = torch.tensor([3, 5, 0, 1, 4, 2])[classes]
    one, two = fit_discriminant(points, classes), fit_discriminant(points[order], renamed[order])
    torch.testing.assert_close(one(points) @ one(points).T, two(points) @ two(points).T, atol=1e-4, rtol=0)


def test_more_features_than_samples_is_solved_in_the_span_of_the_samples():
    points, classes = clusters(n_classes=4, each=3, width=8)  # more samples than features
    wide = F.pad(points, (0, 20))  # fewer, with the same points
    one, two = fit_discriminant(points, classes), fit_discriminant(wide, classes)
    assert two.projection.shape == (28, 8)
    torch.testing.assert_close(one(points) @ one(points).T, two(wide) @ two(wide).T, atol=1e-4, rtol=0)


def test_max_rank_keeps_the_leading_principal_directions():
    points, classes = clusters()
    space = fit_discriminant(points, classes, max_rank=3)
    assert space.projection.shape == (12, 3)
    _, _, vectors = np.linalg.svd((points - points.mean(0)).double().numpy(), full_matrices=False)
    outside = space.projection.double().numpy() - vectors[:3].T @ (vectors[:3] @ space.projection.double().numpy())
    assert abs(outside).max() < 1e-5 * float(space.projection.abs().max())


@pytest.mark.parametrize("shrinkage", [0.0, -0.1, 1.5])
def test_shrinkage_out_of_range_is_refused(shrinkage):
    points, classes = clusters()
    with pytest.raises(ValueError, match=r"`shrinkage` must lie in \(0, 1\], but got"):
        fit_discriminant(points, classes, shrinkage=shrinkage)


def test_shapes_that_do_not_fit_are_refused():
    points, classes = clusters()
    with pytest.raises(
        ValueError, match=r"`samples` must be \(N, F\) with N `classes`, but got \(30, 12\) and \(29,\)"
    ):
        fit_discriminant(points, classes[1:])
    with pytest.raises(ValueError, match=r"but got \(6, 5, 12\)"):
        fit_discriminant(points.view(6, 5, 12), classes)


def test_classes_of_one_sample_each_are_refused():
    with pytest.raises(ValueError, match="must hold one with at least 2 samples, but every sample is alone"):
        fit_discriminant(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.arange(4))


@pytest.mark.parametrize("count", [30, 200])
def test_samples_may_come_in_pieces(monkeypatch, count):
    samples = torch.randn(count, 40, generator=torch.Generator().manual_seed(0)) + 3
    classes = torch.arange(count) % 10
    whole = fit_discriminant(samples, classes)
    monkeypatch.setattr(discriminant, "CHUNK", 7)
    pieces = fit_discriminant(samples, classes)
    torch.testing.assert_close(pieces.mean, whole.mean)
    torch.testing.assert_close(pieces(samples) @ pieces(samples).T, whole(samples) @ whole(samples).T)
