"""Random views: the same pictures a little moved, differentiable all the way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlm_plugin.augment import RandomView


def ramp(count: int, height: int = 12, width: int = 16) -> Tensor:
    """Pictures whose first channel is the column, whose second is the row, and whose third is their own number."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    planes = torch.stack([columns, rows, torch.zeros_like(rows)]).float().repeat(count, 1, 1, 1)
    planes[:, 2] = torch.arange(count)[:, None, None]
    return planes


def moves(images: Tensor, views: Tensor) -> list[tuple[bool, int, int]]:
    """Whether each view is mirrored, and by how many rows and columns it moved, from its inner pixels."""
    found = []
    for image, view in zip(images, views, strict=True):
        mirrored = bool(view[0, 6, 7] > view[0, 6, 8])
        straight = view.flip(2) if mirrored else view
        found.append((mirrored, int(straight[1, 6, 8] - image[1, 6, 8]), int(straight[0, 6, 8] - image[0, 6, 8])))
    return found


def test_shift_and_mirror_stay_in_range_and_reach_all_of_it() -> None:
    images = ramp(600)
    torch.manual_seed(0)
    views = RandomView(shift=0.2, noise=0.0)(images)  # 0.2 of 12 x 16 pixels: 2 rows, 3 columns
    assert views.shape == images.shape
    assert torch.equal(views[:, 2], images[:, 2])
    found = moves(images, views)
    assert {rows for _, rows, _ in found} == set(range(-2, 3))
    assert {columns for _, _, columns in found} == set(range(-3, 4))
    assert 0.4 < sum(mirrored for mirrored, _, _ in found) / 600 < 0.6
    # What moves in is the mirrored border.
    expected = torch.nn.functional.pad(images, (3, 3, 2, 2), mode="reflect")
    for (mirrored, rows, columns), view, padded in zip(found, views, expected, strict=True):
        crop = padded[:, 2 + rows : 14 + rows, 3 + columns : 19 + columns]
        assert torch.equal(view, crop.flip(2) if mirrored else crop)


def test_without_flip_nothing_is_mirrored() -> None:
    images = ramp(300)
    torch.manual_seed(0)
    assert not any(mirrored for mirrored, _, _ in moves(images, RandomView(0.2, flip=False, noise=0.0)(images)))


def test_nothing_to_do_changes_nothing() -> None:
    images = ramp(5)
    assert torch.equal(RandomView(shift=0.0, flip=False, noise=0.0)(images), images)


def test_noise_has_the_wished_deviation() -> None:
    images = torch.zeros(20, 3, 32, 32)
    torch.manual_seed(0)
    noise = RandomView(noise=0.05)(images)
    assert float(noise.std()) == pytest.approx(0.05, rel=0.02)
    assert abs(float(noise.mean())) < 0.001


def test_a_seed_decides_everything() -> None:
    images = torch.rand(8, 3, 32, 32)
    torch.manual_seed(4)
    first = RandomView()(images)
    assert not torch.equal(first, RandomView()(images))
    torch.manual_seed(4)
    assert torch.equal(first, RandomView()(images))


def test_the_gradient_is_the_move_undone() -> None:
    """Each view is linear in its picture: the gradient of a weighted sum follows from two values exactly."""
    images = torch.rand(4, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    direction = torch.rand(4, 3, 16, 16, dtype=torch.float64)

    def value(pictures: Tensor) -> Tensor:
        torch.manual_seed(1)
        return (weights * RandomView(0.2)(pictures)).sum()

    (gradient,) = torch.autograd.grad(value(images), images)
    assert gradient.isfinite().all()
    with torch.no_grad():
        difference = value(images + direction) - value(images)
    assert float((gradient * direction).sum()) == pytest.approx(float(difference))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    assert RandomView()(torch.rand(2, 3, 16, 16).to(dtype)).dtype == dtype


@pytest.mark.parametrize("shift", [-0.1, 0.5, 2.0])
def test_shifts_that_leave_no_picture_are_refused(shift: float) -> None:
    with pytest.raises(ValueError, match=f"shift: expected a share from 0 to below 0.5, got {shift}"):
        RandomView(shift=shift)


def test_every_allowed_shift_works_on_small_pictures() -> None:
    for size in (4, 5, 8, 16):
        images = torch.rand(3, 3, size, size)
        assert RandomView(shift=0.49)(images).shape == images.shape


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_impossible_noise(noise: float) -> None:
    with pytest.raises(ValueError, match=f"noise: expected a standard deviation from 0 up, got {noise}"):
        RandomView(noise=noise)
