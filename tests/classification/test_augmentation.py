"""Augmentation policies: which are taken, and what they do on every version of Pillow."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from iformer.classification.augmentation import check_policy, posterize
from iformer.classification.data import ImageData

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8))


def policy_step(policy: str, channels: int = 3) -> Any:
    """What a datamodule's pipeline does for the policy: image to image."""
    data = ImageData(
        auto_augment=policy, image_size=32, in_chans=channels, mean=(0.5,) * channels, std=(0.2,) * channels
    )
    (step,) = [step for step in data.train_transform().transforms if hasattr(step, "ops") or hasattr(step, "policy")]
    return step


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("policy", ["rand-m10-n1-p1-inc1", "rand-m20-mmax30-n1-p1-inc1", "rand-m0-n1-p1", "v0"])
def test_no_bits_are_a_black_image(policy: str, mode: str) -> None:
    step = policy_step(policy, len(mode))
    operations = step.ops if hasattr(step, "ops") else [op for part in step.policy for op in part]
    of_no_bits = [op for op in operations if op.name.startswith("Posterize") and op.level_fn(op.magnitude, {})[0] <= 0]
    assert of_no_bits
    for operation in of_no_bits:
        operation.prob = 1.0
        black = operation(NOISE.convert(mode))
        assert (black.mode, black.size) == (mode, NOISE.size)
        assert not np.asarray(black).any()


def test_posterize_keeps_the_highest_bits() -> None:
    pixels = np.asarray(NOISE)
    for bits in range(9):
        assert np.array_equal(np.asarray(posterize(NOISE, bits)), pixels & (0xFF00 >> bits & 0xFF)), bits


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "augmix-m9-mstd1", "original", "v0", "v0r-mstd2", "3a"])
def test_the_rest_is_timm_s_draw_for_draw(policy: str) -> None:
    """Also the state of the generators after each image, on which exact resumption rests."""
    size, mean, std = (3, 32, 32), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    whole = create_transform(
        size, True, auto_augment=policy, interpolation="random", mean=mean, std=std, color_jitter=None
    )
    (theirs,) = [step for step in whole.transforms if hasattr(step, "ops") or hasattr(step, "policy")]
    ours = policy_step(policy)
    compared = 0
    for seed in range(1000):
        results = []
        for step in (theirs, ours):
            random.seed(seed)
            np.random.seed(seed)
            try:
                results.append((step(NOISE).tobytes(), random.random(), np.random.random()))
            except ValueError:
                assert step is theirs  # 0 bits, from Pillow 13 on
        if len(results) == 2:
            assert results[0] == results[1], seed
            compared += 1
    assert compared > 900


@pytest.mark.parametrize(
    "policy",
    [
        "rand-m9-mstd0.5-inc1", "rand-m9-n3-mstd0.5", "rand-mstd1-tweights", "rand-m7-n4-mstd1", "rand", "rand-m5-t3aw",
        "rand-p0.3-m15-mmax20-mstd101-inc0", "augmix-m5-w4-d2", "augmix", "augmix-m3-a0.5-b1-mstd1", "original-mstd0.5",
        "original", "originalr", "v0", "v0r", "3a",
    ],
)  # fmt: skip
def test_what_timm_documents_is_taken_and_runs(policy: str) -> None:
    step = policy_step(policy)
    random.seed(0)
    np.random.seed(0)
    for _ in range(20):
        assert step(NOISE).size == NOISE.size


POLICY = (
    r"(rand(-m\d{1,2})?(-n([1-9]|1[0-4]))?(-p0\.\d)?(-mstd\d{1,3}\.\d)?(-mmax[1-9]\d?)?(-inc[01])?(-t(weights|3aw?))?"
    r"|augmix(-m\d{1,2})?(-w\d)?(-d[123])?(-a\d\.\d)?(-b[01])?(-mstd\d\.\d)?|(original|v0)r?(-mstd\d\.\d)?|3a)"
)


@settings(max_examples=150, deadline=None)
@given(st.from_regex(POLICY, fullmatch=True, alphabet=st.characters(codec="ascii")))
def test_what_is_taken_runs(policy: str) -> None:
    try:
        check_policy(policy)
    except ValueError:  # no chain, or an alpha of 0
        assert "-w0" in policy or "-a0.0" in policy
        return
    step = policy_step(policy)
    for _ in range(3):
        step(NOISE)


@pytest.mark.parametrize(
    ("policy", "wrong"),
    [
        ("rand-foo", "'foo' is not a setting of rand, expected settings such as m9,"),
        ("rand-m99x", "'m99x' is no"),
        ("rand-m9-mstd", "'mstd' is no"),
        ("rand-m9.5", "'m9.5' is no"),
        ("rand-m9-mstd.5", "'mstd.5' is no"),
        ("rand-m9-", "'' is no"),
        ("rand-m-9", "'m' is no"),
        ("rand-p1.5", "'p1.5' is no"),
        ("rand-n0", "'n0' is no"),
        ("rand-n20-tweights", "'n20' is no"),
        ("rand-twaights", "'twaights' is no"),
        ("rand-m9-mstd0.5-inc1-w0", "'w0' is no"),  # which timm had once
        ("rand-m9-inc1-m5", "'m5' repeats a setting"),
        ("augmix-foo", "'foo' is not a setting of augmix"),
        ("augmix-w0", "'w0' is not a setting of augmix"),
        ("original-m5", "'m5' is not a setting of original, expected settings such as mstd0.5"),
        ("randaug", "expected rand, augmix, original,"),
        ("Rand-m9", "expected rand,"),
        ("random", "expected rand,"),
        ("v1", "expected rand,"),
    ],
)
def test_other_policies_are_refused(policy: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=f"^auto_augment is '{policy}'") as error:
        ImageData(auto_augment=policy)
    assert wrong in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interpolation": "bicubicc"}, "^interpolation is 'bicubicc', expected nearest, bilinear, bicubic, "),
        ({"interpolation": "random"}, "^interpolation is 'random', expected nearest,"),
        ({"train_interpolation": "linear"}, "^train_interpolation is 'linear', expected nearest, .*random"),
        ({"crop_mode": "centre"}, "^crop_mode is 'centre', expected 'center', 'squash' or 'border'"),
        ({"erasing_mode": "noise"}, "^erasing_mode is 'noise', expected 'pixel', 'rand' or 'const'"),
        ({"train_interpolation": "lanczos", "auto_augment": "rand-m9"}, "^train_interpolation is 'lanczos', which"),
        ({"train_interpolation": None, "interpolation": "box", "auto_augment": "3a"}, "^interpolation is 'box', which"),
    ],
)
def test_names_that_timm_does_not_know_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData(**arguments)


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random", None])
def test_every_interpolation_runs(name: Any) -> None:
    data = ImageData(
        image_size=16, train_interpolation=name, interpolation="bicubic" if name in (None, "random") else name
    )
    assert data.train_transform()(NOISE).shape == data.eval_transform()(NOISE).shape == (3, 16, 16)
