import json
import types

import numpy as np
import pytest
from PIL import Image

from dajax.errors import ConfigError, ImageError
from dajax.preprocessing.processor import IMAGENET_MEAN, IMAGENET_STD, DepthImageProcessor
from dajax.resample import cubic_matrix, resize_cubic, resize_linear


def make_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# (height, width) -> what Transformers and the authors' code make of it, worked out with both.
SIZES = {
    (480, 640): ((518, 686), (518, 686)),
    (720, 1280): ((518, 924), (518, 924)),
    (375, 1242): ((518, 1722), (518, 1722)),
    (400, 600): ((350, 518), (518, 784)),
    (300, 400): ((392, 518), (518, 686)),
    (360, 640): ((294, 518), (518, 924)),
    (518, 518): ((518, 518), (518, 518)),
}


@pytest.mark.parametrize("source", SIZES)
def test_target_sizes(source):
    huggingface, official = SIZES[source]
    assert DepthImageProcessor().target_size(*source) == huggingface
    assert DepthImageProcessor(style="official").target_size(*source) == official
    transposed = source[::-1]
    assert DepthImageProcessor(style="official").target_size(*transposed) == official[::-1]


def test_half_a_patch_rounds_to_even():
    # 525 pixels are 37.5 patches, which is 38; 511 are 36.5, which is 36.
    assert DepthImageProcessor().target_size(518, 525) == (518, 532)
    assert DepthImageProcessor().target_size(518, 511) == (518, 504)
    assert DepthImageProcessor(style="official").target_size(518, 525) == (518, 532)


def test_thin_images_get_one_patch():
    processor = DepthImageProcessor()
    assert processor.target_size(1, 20_000) == (14, 518)
    assert processor.target_size(20_000, 1) == (518, 14)
    assert processor.target_size(1, 1) == (518, 518)
    assert processor(make_image(1, 1))["pixel_values"].shape == (1, 518, 518, 3)
    assert processor(make_image(1, 3000))["pixel_values"].shape == (1, 14, 518, 3)


def test_too_many_patches_are_refused():
    with pytest.raises(ImageError, match=r"1x20000.*limit is 16,384"):
        DepthImageProcessor(style="official").target_size(1, 20_000)
    with pytest.raises(ImageError, match="limit"):
        DepthImageProcessor(do_resize=False).target_size(2000, 2000)
    with pytest.raises(ImageError, match="empty"):
        DepthImageProcessor().target_size(0, 5)


def test_huggingface_pixels_are_the_formula():
    image = make_image(100, 150)
    processor = DepthImageProcessor(input_size=56)
    height, width = processor.target_size(100, 150)
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(processor.resize_uint8(image), resized)
    expected = (resized / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    pixels, source_size = processor.preprocess_one(image)
    assert (pixels.dtype, pixels.shape, source_size) == (np.float32, (height, width, 3), (100, 150))
    np.testing.assert_allclose(pixels, expected, atol=1e-6)


def test_official_pixels_are_the_formula():
    image = make_image(100, 150)
    processor = DepthImageProcessor("official", input_size=56)
    height, width = processor.target_size(100, 150)
    assert (height, width) == (56, 84)
    rows, columns = (cubic_matrix(*n, coordinates="opencv") for n in ((100, height), (150, width)))
    resized = np.einsum("hi,ijc,wj->hwc", rows, image / 255, columns)
    expected = (resized - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    pixels, _ = processor.preprocess_one(image)
    assert (pixels.dtype, pixels.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_allclose(pixels, expected, atol=1e-6)
    antialiased, _ = DepthImageProcessor(input_size=(56, 84), keep_aspect_ratio=False).preprocess_one(image)
    assert np.abs(pixels - antialiased).max() > 0.1


@pytest.mark.parametrize("style", ["huggingface", "official"])
def test_steps_can_be_switched_off(style):
    image = make_image(28, 42)
    plain = DepthImageProcessor(style, do_resize=False, do_rescale=False, do_normalize=False)
    np.testing.assert_array_equal(plain.preprocess_one(image)[0], image.astype(np.float32))
    scaled = DepthImageProcessor(style, do_resize=False, do_normalize=False)
    np.testing.assert_allclose(scaled.preprocess_one(image)[0], image / 255, atol=1e-7)


def test_batches(tmp_path):
    processor = DepthImageProcessor(input_size=28)
    images = [make_image(40, 40, seed) for seed in range(3)]
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    batch = processor([tmp_path / "a.png", Image.fromarray(images[1]), images[2]])["pixel_values"]
    assert (batch.shape, batch.dtype) == ((3, 28, 28, 3), np.float32)
    np.testing.assert_array_equal(batch, processor(np.stack(images))["pixel_values"])
    for single, image in zip(batch, images, strict=True):
        np.testing.assert_array_equal(single, processor(image)["pixel_values"][0])
    with pytest.raises(ImageError, match=r"mixed sizes"):
        processor([images[0], make_image(40, 80)])
    with pytest.raises(ImageError, match="at least one"):
        processor([])


@pytest.mark.parametrize(
    "options",
    [
        {"style": "other"},
        {"input_size": 13},
        {"input_size": 0},
        {"input_size": -518},
        {"input_size": 10**9},
        {"input_size": (518, 5)},
        {"input_size": True},
        {"ensure_multiple_of": 0},
        {"resample": 9},
        {"resample": 6},
        {"resample": -1},
        {"rescale_factor": float("nan")},
        {"image_mean": (0.5, 0.5)},
        {"image_mean": (0.5, 0.5, float("inf"))},
        {"image_std": (1.0, 0.0, 1.0)},
    ],
)
def test_bad_options(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        DepthImageProcessor(**options)


def test_configuration_round_trip(tmp_path):
    processor = DepthImageProcessor(input_size=(280, 420), image_mean=(0.1, 0.2, 0.3), resample=2)
    processor.save_pretrained(tmp_path / "new")
    again = DepthImageProcessor.from_pretrained(tmp_path / "new")
    assert again.to_dict() == processor.to_dict()
    assert again.to_dict()["size"] == {"height": 280, "width": 420}
    assert again.style == "huggingface"
    official = DepthImageProcessor.from_pretrained(tmp_path / "new", style="official", input_size=140)
    assert (official.style, official.size) == ("official", {"height": 140, "width": 140})
    assert DepthImageProcessor.from_dict(processor.to_dict()).to_dict() == processor.to_dict()


def test_style_is_saved(tmp_path):
    official = DepthImageProcessor("official", input_size=280)
    official.save_pretrained(tmp_path / "official")
    again = DepthImageProcessor.from_pretrained(tmp_path / "official")
    assert (again.style, again.to_dict()) == ("official", official.to_dict())
    image = make_image(40, 50)
    np.testing.assert_array_equal(again(image)["pixel_values"], official(image)["pixel_values"])
    # Whoever opens it may choose; Transformers' own files have no such field.
    assert DepthImageProcessor.from_pretrained(tmp_path / "official", style="huggingface").style == "huggingface"
    assert "style" not in DepthImageProcessor().to_dict()
    assert DepthImageProcessor.from_dict({**official.to_dict(), "style": None}).style == "huggingface"
    assert DepthImageProcessor.from_pretrained("small").style == "huggingface"
    assert DepthImageProcessor.from_pretrained("small", style="official").style == "official"


def test_released_checkpoints_have_the_defaults():
    # The fields that every released Depth Anything file holds.
    published = {
        "do_normalize": True, "do_pad": False, "do_rescale": True, "do_resize": True, "ensure_multiple_of": 14,
        "image_mean": [0.485, 0.456, 0.406], "image_processor_type": "DPTImageProcessor",
        "image_std": [0.229, 0.224, 0.225], "keep_aspect_ratio": True, "resample": 3,
        "rescale_factor": 0.00392156862745098, "size": {"height": 518, "width": 518}, "size_divisor": None,
    }  # fmt: skip
    assert DepthImageProcessor.from_dict(published).to_dict() == DepthImageProcessor().to_dict()


def test_absent_fields_are_those_of_transformers():
    fields = DepthImageProcessor.from_dict({}).to_dict()
    assert fields["size"] == {"height": 384, "width": 384}
    assert (fields["ensure_multiple_of"], fields["keep_aspect_ratio"], fields["image_mean"]) == (1, False, [0.5] * 3)
    assert DepthImageProcessor.from_dict({"size": 518, "image_mean": 0.25}).image_mean == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"image_processor_type": "ViTImageProcessor"}', "ViTImageProcessor"),
        (b'{"size": {"shortest_edge": 518}}', "size"),
        (b'{"size": "518"}', "size"),
        (b'{"size": {"height": "518", "width": 518}}', "size must be whole"),
        (b'{"do_resize": "no"}', "do_resize"),
        (b'{"do_pad": true}', "do_pad"),
        (b'{"image_mean": "x"}', "image_mean"),
        (b'{"image_mean": [0.5, "x", 0.5]}', "image_mean"),
        (b'{"rescale_factor": "x"}', "rescale_factor"),
        (b'{"rescale_factor": NaN}', "rescale_factor"),
        (b'{"size": 1000000000}', "input_size"),
        (b'{"style": "offical"}', "style must be one of huggingface, official"),
        (b'{"style": ""}', "style must be"),
        (b'{"style": ["official"]}', "style must be"),
        (b"[1]", "object"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b" " * 2_000_000, "has at most"),
    ],
)
def test_malformed_files(tmp_path, content, message):
    (tmp_path / "preprocessor_config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        DepthImageProcessor.from_pretrained(tmp_path)
    assert "preprocessor_config.json" in str(caught.value)


def test_directory_without_the_file(tmp_path):
    with pytest.warns(UserWarning, match="has no preprocessor_config.json: the released"):
        processor = DepthImageProcessor.from_pretrained(tmp_path)
    assert processor.to_dict() == DepthImageProcessor().to_dict()


def test_lone_file_of_weights_takes_the_config_beside_it(tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    assert DepthImageProcessor.from_pretrained(weights).size == {"height": 518, "width": 518}
    DepthImageProcessor(input_size=252).save_pretrained(tmp_path)
    assert DepthImageProcessor.from_pretrained(weights).size == {"height": 252, "width": 252}


def test_extra_fields_are_ignored(tmp_path):
    fields = {**DepthImageProcessor().to_dict(), "auto_map": {"AutoImageProcessor": "evil.Evil"}, "crop_pct": 1}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    assert DepthImageProcessor.from_pretrained(tmp_path).to_dict() == DepthImageProcessor().to_dict()


def test_post_processing():
    maps = np.random.default_rng(0).uniform(1, 2, (2, 28, 42)).astype(np.float32)
    sizes = [(40, 60), (20, 31)]
    for style, resize in (("huggingface", resize_cubic), ("official", resize_linear)):
        processor = DepthImageProcessor(style)
        outputs = types.SimpleNamespace(predicted_depth=maps)
        for source in (outputs, maps, {"predicted_depth": maps}):
            results = processor.post_process_depth_estimation(source, target_sizes=sizes)
            for result, depth, size in zip(results, maps, sizes, strict=True):
                assert result["predicted_depth"].dtype == np.float32
                np.testing.assert_array_equal(result["predicted_depth"], resize(depth, size))
        unchanged = processor.post_process_depth_estimation(outputs)
        np.testing.assert_array_equal(np.stack([result["predicted_depth"] for result in unchanged]), maps)


@pytest.mark.parametrize(
    ("shape", "sizes", "message"),
    [
        ((2, 14, 14), [(5, 5)], "2 depth maps, 1 sizes"),
        ((1, 14, 14), [(0, 5)], "target size"),
        ((1, 14, 14), [(10**6, 10**6)], "target size"),
        ((14, 14), None, "batch, height, width"),
    ],
)
def test_post_processing_refuses(shape, sizes, message):
    with pytest.raises(ImageError, match=message):
        DepthImageProcessor().post_process_depth_estimation(np.zeros(shape, np.float32), sizes)
