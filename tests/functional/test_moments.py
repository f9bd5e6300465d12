import pytest
import torch

from mega_pl.functional.moments import SecondMoment


def vectors(count=200, width=7, dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    return (torch.randn(count, width, generator=draw) + 3.0).to(dtype)


def moment_of(parts, width=7):
    moment = SecondMoment(width)
    for part in parts:
        moment.update(part)
    return moment


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_the_mean_of_outer_products(dtype):
    given = vectors(dtype=dtype)
    slow = torch.stack([torch.outer(v, v) for v in given.double()]).mean(0)
    torch.testing.assert_close(moment_of([given]).compute(), slow, rtol=1e-5, atol=0)


def test_it_is_not_centred():
    given = vectors()
    centred = torch.cov(given.T.double(), correction=0)
    mean = given.double().mean(0)
    torch.testing.assert_close(moment_of([given]).compute(), centred + torch.outer(mean, mean), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [[200], [1] * 200, [199, 1], [0, 63, 0, 137], [50, 50, 50, 50]])
def test_streaming_equals_batch_for_any_split(sizes):
    given = vectors(dtype=torch.float64)
    streamed = moment_of(given.split(sizes))
    assert streamed.count == 200
    torch.testing.assert_close(streamed.compute(), moment_of([given]).compute(), rtol=1e-13, atol=0)


def test_a_long_stream_of_one_vector_keeps_its_digits():
    moment, vector = SecondMoment(2), torch.tensor([[0.1, 3.0]])
    for _ in range(20_000):
        moment.update(vector)
    torch.testing.assert_close(moment.compute(), (vector.T @ vector).double(), rtol=1e-7, atol=0)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="`width` must be at least 1, but got 0"):
        SecondMoment(0)
    moment = SecondMoment(3)
    with pytest.raises(ValueError, match=r"`vectors` must have shape \(N, 3\), but got \(2, 4\)"):
        moment.update(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"`vectors` must have shape \(N, 3\), but got \(3,\)"):
        moment.update(torch.ones(3))
    with pytest.raises(ValueError, match="`vectors` must be finite"):
        moment.update(torch.tensor([[1.0, float("nan"), 0.0]]))
    with pytest.raises(ValueError, match="at least one vector, but there was none"):
        moment.compute()
