from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from tests.trainables.images import noise_images, smooth_images
from trainables.settings import PROFILES, AugmentSettings
from trainables.simclr import Augment
from trainables.simclr.augment import Draw
from trainables.simclr.color import adjust

OFF = AugmentSettings(crop_area=(1, 1), crop_aspect=(1, 1), flip=0, jitter=0, grayscale=0)
ALL = AugmentSettings(rotation=20, flip=0.5, jitter=0.8, grayscale=0.3, blur=0.5)
COLOURS = (
    reference.adjust_brightness,
    reference.adjust_contrast,
    reference.adjust_saturation,
    reference.adjust_hue,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def views(profile: str | AugmentSettings, images: Tensor, seed: int = 0, size: int | None = None) -> Tensor:
    return Augment(size or images.shape[-1], profile)(images, seeded(seed))


def many_draws(n: int = 20_000, size: tuple[int, int] = (32, 32), **chosen: Any) -> Draw:
    return Augment(32, AugmentSettings(**chosen)).draw(n, size, seeded())


def plain(n: int, **chosen: Tensor) -> Draw:
    """Returns parameters that change nothing, except for those given."""
    nothing = Draw(
        centre=torch.zeros(n, 2),
        extent=torch.ones(n, 2),
        angle=torch.zeros(n),
        order=torch.full((n, 4), -1),
        factor=torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(n, 4),
        gray=torch.zeros(n, dtype=torch.bool),
        sigma=torch.zeros(n),
    )
    return replace(nothing, **chosen)


# --- views ---


@pytest.mark.parametrize("profile", ["natural", "digits", ALL])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 24])
def test_views_are_images_in_0_to_1(profile: str | AugmentSettings, channels: int, size: int) -> None:
    images = noise_images(64, 16, channels)
    images[:8], images[8:16] = 0, 255
    result = views(profile, images, size=size)
    assert result.shape == (64, channels, size, size)
    assert result.dtype == torch.float32
    assert float(result.min()) >= 0
    assert float(result.max()) <= 1 + 1e-6
    assert float(result[16:].std()) > 0.1
    assert float(result[:8].max()) == 0


def test_images_are_not_modified() -> None:
    images = noise_images(16)
    before = images.clone()
    views(ALL, images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("size", [7, 16, 32, 33])
def test_disabled_augmentations_change_nothing(size: int) -> None:
    images = noise_images(8, size)
    torch.testing.assert_close(views(OFF, images), images / 255, rtol=0, atol=1e-5)


def test_the_border_is_replicated() -> None:
    white = torch.full((64, 1, 16, 16), 255, dtype=torch.uint8)
    turned = views(AugmentSettings(rotation=180), white, size=24)
    torch.testing.assert_close(turned, torch.ones(64, 1, 24, 24), rtol=0, atol=1e-6)


def test_views_depend_on_the_seed_only() -> None:
    images = noise_images(16)
    state = torch.get_rng_state()
    first = views(ALL, images, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(views(ALL, images, seed=1), first)
    assert not torch.equal(views(ALL, images, seed=2), first)


def test_consecutive_draws_differ() -> None:
    images, generator, augment = noise_images(16), seeded(), Augment(16, ALL)
    assert not torch.equal(augment(images, generator), augment(images, generator))


@pytest.mark.parametrize(
    "chosen",
    [
        {"crop_area": (0.2, 1.0)},
        {"rotation": 20.0},
        {"jitter": 1.0, "contrast": 0, "saturation": 0, "hue": 0},
        {"jitter": 1.0, "brightness": 0, "saturation": 0, "hue": 0},
        {"jitter": 1.0, "brightness": 0, "contrast": 0, "hue": 0},
        {"jitter": 1.0, "brightness": 0, "contrast": 0, "saturation": 0},
        {"blur": 1.0},
    ],
    ids=str,
)
def test_every_image_has_its_own_parameters(chosen: dict[str, Any]) -> None:
    same = noise_images(1, 32).expand(12, -1, -1, -1)
    result = views(AugmentSettings.model_validate({**OFF.model_dump(), **chosen}), same).flatten(1)
    distances = torch.cdist(result, result) + torch.eye(12)
    assert float(distances.min()) > 1e-4


@pytest.mark.parametrize("rows", [slice(0, 7), slice(7, 20), torch.tensor([19, 3, 4, 11])], ids=str)
def test_rows_do_not_depend_on_the_rest_of_the_batch(rows: slice | Tensor) -> None:
    images, augment = noise_images(20), Augment(16, ALL)
    draw = augment.draw(20, (16, 16), seeded())
    whole = augment.apply(images, draw)
    torch.testing.assert_close(augment.apply(images[rows], draw[rows]), whole[rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("profile", ["natural", "digits", ALL])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 40])
def test_gpu_and_cpu_views_are_equal(profile: str | AugmentSettings, channels: int, size: int) -> None:
    images, augment = noise_images(128, 16, channels), Augment(size, profile)
    draw = augment.draw(128, (16, 16), seeded())
    theirs = augment.views(images, draw.packed())
    assert theirs.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(theirs, augment.apply(images, draw), rtol=0, atol=1e-5)


def test_digits_are_neither_flipped_nor_recoloured() -> None:
    draw = Augment(28, "digits").draw(2000, (28, 28), seeded())
    assert bool((draw.extent > 0).all())  # none is mirrored
    assert bool((draw.order == -1).all())
    assert not draw.gray.any()
    assert 0.45 < float((draw.sigma > 0).float().mean()) < 0.55
    assert 0.9 < math.degrees(float(draw.angle.abs().max())) / 20 <= 1
    assert float(draw.extent.prod(1).min()) > 0.37  # area from 0.4, before rounding to pixels


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'naturall'.*natural, digits"):
        Augment(32, "naturall")
    with pytest.raises(ValidationError, match="flipp"):
        AugmentSettings.model_validate({"flipp": 0.5})


@settings(max_examples=30)
@given(
    area=st.tuples(st.floats(0.05, 0.5), st.floats(0.5, 1)),
    rotation=st.floats(0, 180),
    strengths=st.tuples(*[st.floats(0, 1)] * 3, st.floats(0, 0.5)),
    seed=st.integers(0, 1000),
)
def test_any_settings_give_images(
    area: tuple[float, float], rotation: float, strengths: tuple[float, ...], seed: int
) -> None:
    brightness, contrast, saturation, hue = strengths
    chosen = AugmentSettings(
        crop_area=area,
        rotation=rotation,
        jitter=1,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
        grayscale=0.5,
        blur=0.5,
    )
    result = views(chosen, noise_images(4, 8), seed=seed)
    assert bool(torch.isfinite(result).all())
    assert -1e-6 < float(result.min()) <= float(result.max()) < 1 + 1e-6


# --- distributions ---


def torchvision_crops(n: int, height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]) -> Any:
    """Returns top, left, height, width [n, 4] of RandomResizedCrop, one image at a time."""
    image = torch.empty(1, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return np.array([RandomResizedCrop.get_params(image, list(area), list(aspect)) for _ in range(n)])


@pytest.mark.parametrize(
    ("height", "width", "area", "aspect"),
    [
        (32, 32, (0.2, 1.0), (3 / 4, 4 / 3)),
        (32, 32, (0.08, 0.5), (1 / 2, 2)),
        (28, 28, (0.4, 1.0), (3 / 4, 4 / 3)),
        (28, 40, (0.2, 0.9), (3 / 4, 4 / 3)),
    ],
)
def test_crops_are_distributed_like_torchvisions(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]
) -> None:
    n = 4000
    top, left, h, w = torchvision_crops(n, height, width, area, aspect).T
    draw = many_draws(n, (height, width), crop_area=area, crop_aspect=aspect, flip=0)
    own_w, own_h = (draw.extent * torch.tensor([width, height])).T.double()
    own_left = ((draw.centre[:, 0] + 1) * width - own_w) / 2
    own_top = ((draw.centre[:, 1] + 1) * height - own_h) / 2
    pairs = {
        "area": (own_w * own_h, w * h),
        "aspect": (own_w / own_h, w / h),
        "width": (own_w, w),
        "height": (own_h, h),
        "left": (own_left, left),
        "top": (own_top, top),
    }
    for name, (own, theirs) in pairs.items():
        # Rounded: equal fractions must be equal numbers for ranks. 0.045 has p below 0.001 for 4000 of each.
        distance = stats.ks_2samp(np.round(own.numpy(), 3), np.round(theirs, 3)).statistic
        assert distance < 0.045, name
    for edges, limit in ((own_left, width - own_w), (own_top, height - own_h)):  # whole pixels, inside of the image
        torch.testing.assert_close(edges, edges.round(), rtol=0, atol=1e-4)
        assert float(edges.min()) > -1e-4
        assert float((edges - limit).max()) < 1e-4


def test_a_crop_that_cannot_fit_is_the_whole_image() -> None:
    draw = many_draws(50, (4, 40), crop_area=(0.9, 1.0), crop_aspect=(1, 1), flip=0)
    assert torch.equal(draw.extent, torch.ones(50, 2))
    assert torch.equal(draw.centre, torch.zeros(50, 2))


@pytest.mark.parametrize(
    ("chosen", "happens"),
    [
        ({"flip": 0.5}, lambda draw: draw.extent[:, 0] < 0),
        ({"flip": 0.1}, lambda draw: draw.extent[:, 0] < 0),
        ({"jitter": 0.8}, lambda draw: draw.order[:, 0] >= 0),
        ({"grayscale": 0.2}, lambda draw: draw.gray),
        ({"blur": 0.3}, lambda draw: draw.sigma > 0),
    ],
    ids=["flip often", "flip seldom", "jitter", "grayscale", "blur"],
)
def test_changes_have_their_probabilities(chosen: dict[str, float], happens: Any) -> None:
    (probability,) = chosen.values()
    drawn = happens(many_draws(**chosen)).double()
    spread = math.sqrt(probability * (1 - probability) / len(drawn))
    assert float(drawn.mean()) == pytest.approx(probability, abs=4 * spread)
    pairs = float((drawn[:-1] * drawn[1:]).mean())  # neighbours are independent
    assert pairs == pytest.approx(probability**2, abs=8 * spread)


def test_strengths_are_uniform() -> None:
    draw = many_draws(brightness=0.4, contrast=0.8, saturation=0.2, hue=0.1, rotation=30, blur=1.0)
    samples = {
        "brightness": (draw.factor[:, 0], 0.6, 1.4),
        "contrast": (draw.factor[:, 1], 0.2, 1.8),
        "saturation": (draw.factor[:, 2], 0.8, 1.2),
        "hue": (draw.factor[:, 3], -0.1, 0.1),
        "angle": (draw.angle.rad2deg(), -30.0, 30.0),
        "sigma": (draw.sigma, 0.1, 2.0),
    }
    for name, (values, low, high) in samples.items():
        assert stats.kstest(values.double().numpy(), "uniform", (low, high - low)).pvalue > 0.001, name
    joint = np.corrcoef(np.stack([values.numpy() for values, _, _ in samples.values()]))
    assert np.abs(joint - np.eye(len(samples))).max() < 4.5 / math.sqrt(len(draw.sigma))


def test_all_orders_of_the_colour_changes_are_equally_likely() -> None:
    draw = many_draws(jitter=1.0)
    counts = dict.fromkeys(permutations(range(4)), 0)
    for order in draw.order.tolist():
        counts[tuple(order)] += 1  # a KeyError: no permutation
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


# --- comparison with torchvision, image by image ---


def pictures() -> Tensor:
    """Returns images in [0, 1] with grey, black, white, pure colours and ties of two channels."""
    images = torch.cat([noise_images(4, 9), torch.tensor(smooth_images(4, 9))]).float() / 255
    corners = torch.tensor([[r, g, b] for r in (0, 0.5, 1) for g in (0, 0.5, 1) for b in (0, 0.5, 1)])
    images[3, :, :3] = corners.T.reshape(3, 3, 9)
    images[4] = images[4, :1]
    return images


@pytest.mark.parametrize(
    ("change", "factors"),
    [
        (0, [0.0, 0.3, 0.6, 0.9, 1.0, 1.2, 1.4, 2.0]),
        (1, [0.0, 0.3, 0.6, 0.9, 1.0, 1.2, 1.4, 2.0]),
        (2, [0.0, 0.3, 0.6, 0.9, 1.0, 1.2, 1.4, 2.0]),
        (3, [-0.5, -0.3, -0.1, 0.0, 0.05, 0.1, 0.3, 0.5]),
    ],
)
def test_colour_changes_equal_torchvisions(change: int, factors: list[float]) -> None:
    images = pictures()
    for shift in range(len(factors)):  # every image gets every factor
        turned = factors[shift:] + factors[:shift]
        actual = adjust(images.clone(), change, torch.tensor(turned)[:, None, None, None])
        expected = [COLOURS[change](image, factor) for image, factor in zip(images, turned, strict=True)]
        torch.testing.assert_close(actual, torch.stack(expected), rtol=0, atol=1e-5)


def test_grayscale_equals_torchvisions() -> None:
    images = noise_images(6)
    gray = torch.tensor([True, False, True, True, False, False])
    result = Augment(16, OFF).apply(images, plain(6, gray=gray))
    for view, image, is_gray in zip(result, images.float() / 255, gray.tolist(), strict=True):
        expected = reference.rgb_to_grayscale(image, 3) if is_gray else image
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "kernel"), [(16, 3), (32, 3), (48, 5), (64, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_blur_equals_torchvisions(size: int, kernel: int, channels: int) -> None:
    images, sigma = noise_images(6, size, channels), torch.tensor([0.1, 0.0, 0.5, 1.0, 0.0, 2.0])
    result = Augment(size, OFF).apply(images, plain(6, sigma=sigma))
    for view, image, width in zip(result, images.float() / 255, sigma.tolist(), strict=True):
        expected = reference.gaussian_blur(image, [kernel, kernel], [width, width]) if width else image
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


def test_flip_is_exact() -> None:
    images = noise_images(6, 32)
    upright = Augment(32, OFF).apply(images, plain(6))
    flipped = Augment(32, OFF).apply(images, plain(6, extent=torch.tensor([[-1.0, 1.0]]).expand(6, 2)))
    torch.testing.assert_close(flipped, images.flip(3) / 255, rtol=0, atol=1e-5)
    torch.testing.assert_close(flipped, upright.flip(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [16, 24])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_crop_equals_torchvisions_resized_crop(size: int, flip: float) -> None:
    augment = Augment(size, AugmentSettings.model_validate({**OFF.model_dump(), "crop_area": (0.2, 0.8), "flip": flip}))
    images = noise_images(30, 16)
    draw = augment.draw(30, (16, 16), seeded())
    result = augment.apply(images, draw)
    for view, image, centre, extent in zip(result, images / 255, draw.centre, draw.extent.abs(), strict=True):
        w, h = (round(float(share) * 16) for share in extent)
        left, top = (round(((float(c) + 1) * 16 - s) / 2) for c, s in zip(centre, (w, h), strict=True))
        expected = reference.resized_crop(image, top, left, h, w, [size, size], antialias=False)
        # torchvision crops first and so replicates the crop's outermost half pixel.
        inside = torch.ones(size, size, dtype=torch.bool)
        for axis, length in ((0, h), (1, w)):
            at = (torch.arange(size) + 0.5) * length / size
            inside &= ((at >= 0.5) & (at <= length - 0.5)).unsqueeze(1 - axis)
        assert int(inside.sum()) > size
        upright = view.flip(2) if flip else view
        torch.testing.assert_close(upright[:, inside], expected[:, inside], rtol=0, atol=1e-4)


def test_a_quarter_turn_is_exact() -> None:
    images = noise_images(4, 16)
    result = Augment(16, OFF).apply(images, plain(4, angle=torch.full((4,), math.pi / 2)))
    torch.testing.assert_close(result, torch.rot90(images / 255, 1, (2, 3)), rtol=0, atol=1e-4)


def test_rotation_equals_torchvisions() -> None:
    size, degrees = 17, [-15.0, -4.0, 7.0, 12.0, 90.0, 130.0]
    images = noise_images(6, size)
    result = Augment(size, OFF).apply(images, plain(6, angle=torch.tensor(degrees).deg2rad()))
    offset = torch.arange(size) - size // 2
    inside = offset[:, None] ** 2 + offset**2 <= (size // 2 - 1) ** 2  # beyond it torchvision is black
    for view, image, angle in zip(result, images / 255, degrees, strict=True):
        expected = reference.rotate(image, angle, InterpolationMode.BILINEAR)
        torch.testing.assert_close(view[:, inside], expected[:, inside], rtol=0, atol=1e-4)


def test_a_rotated_crop_shows_what_is_in_it() -> None:
    """On a linear ramp, a view's colour at a point is the image's at centre + rotation (extent * point)."""
    ramp = torch.arange(32.0).expand(32, 32)
    images = torch.stack([ramp, ramp.T, torch.zeros(32, 32)]).mul(8).to(torch.uint8)[None]
    angle, centre, extent = math.radians(20), (0.1, -0.2), (-0.5, 0.4)
    draw = plain(1, centre=torch.tensor([centre]), extent=torch.tensor([extent]), angle=torch.tensor([angle]))
    view = Augment(32, OFF).apply(images, draw)[0]
    point = (2 * torch.arange(32.0) + 1) / 32 - 1
    along_x, along_y = point[None, :] * extent[0], point[:, None] * extent[1]
    x = centre[0] + along_x * math.cos(angle) - along_y * math.sin(angle)
    y = centre[1] + along_x * math.sin(angle) + along_y * math.cos(angle)
    expected = torch.stack([x, y]).add(1).mul(16).sub(0.5).mul(8 / 255)
    torch.testing.assert_close(view[:2], expected, rtol=0, atol=1e-4)


def test_the_pipeline_equals_torchvisions_image_by_image() -> None:
    """Compares flip, colour changes in order, grayscale and blur; crops differ at their edges."""
    chosen = AugmentSettings(crop_area=(1, 1), crop_aspect=(1, 1), grayscale=0.3, blur=0.5)
    augment, images = Augment(16, chosen), noise_images(40)
    draw = augment.draw(40, (16, 16), seeded())
    result = augment.apply(images, draw)
    for n, view in enumerate(result):
        expected = images[n] / 255
        if draw.extent[n, 0] < 0:
            expected = reference.horizontal_flip(expected)
        for change in draw.order[n].tolist():
            if change >= 0:
                expected = COLOURS[change](expected, float(draw.factor[n, change]))
        if draw.gray[n]:
            expected = reference.rgb_to_grayscale(expected, 3)
        if draw.sigma[n] > 0:
            expected = reference.gaussian_blur(expected, [3, 3], [float(draw.sigma[n])] * 2)
        torch.testing.assert_close(view, expected, rtol=0, atol=3e-5)


def test_profiles_are_known_by_name() -> None:
    images = noise_images(8)
    for name, chosen in PROFILES.items():
        assert torch.equal(views(name, images), views(chosen, images))
    assert not torch.equal(views("natural", images), views("digits", images))
