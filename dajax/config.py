"""What a Depth Anything model is made of.

Field names and defaults are those of Transformers' `DepthAnythingConfig` and `Dinov2Config`: a `config.json` from the
Hub leaves most of them out, and what it leaves out has to mean the same here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from os.path import isdir
from pathlib import Path
from typing import Any, Literal, Unpack, get_args

from dajax import limits
from dajax.checkpoints import ALIASES, Checkpoint, embedded_folder
from dajax.errors import ConfigError, shown
from dajax.hub import HubOptions, is_hub_id, locate
from dajax.json_fields import as_tuple, check_flag, check_integer, check_number, known_fields, read_json

Style = Literal["huggingface", "official"]
# Checkpoints of these kinds have tensors of the same names and shapes.
Kind = Literal["relative", "metric-indoor", "metric-outdoor", "v1"]
KINDS = get_args(Kind)

# The authors' code (DINOv2, `interpolate_offset`) resamples the position embeddings by scale factors of (n + 0.1) / 37,
# Transformers since 4.45 by size.
INTERPOLATE_OFFSET: dict[str, float] = {"huggingface": 0.0, "official": 0.1}

_OTHER_FAMILIES = {
    "dinov2_with_registers": "DINOv2 with registers",
    "dinov3_vit": "DINOv3",
    "dpt": "DPT (or DPT-hybrid)",
    "zoedepth": "ZoeDepth (the metric models of Depth Anything V1 are ZoeDepth models)",
    "prompt_depth_anything": "Prompt Depth Anything",
    "depth_pro": "Depth Pro",
}


@dataclass(frozen=True)
class Dinov2Config:
    """The encoder: a DINOv2 vision transformer. Defaults are those of Transformers' `Dinov2Config`.

    Attributes:
        out_indices: which hidden states feed the neck; 0 is the embedding output, n the output of layer n.
        reshape_hidden_states: always False here; Transformers' Depth Anything runs with False only.
        interpolate_offset: added to the number of patches when position embeddings are resampled: 0 as Transformers
            does, 0.1 as the authors' code does (see `style` in `dajax.load`). The one field that Transformers lacks.

    Raises:
        ConfigError: a field has the wrong type, is out of bounds (`dajax.limits`), or contradicts another.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int | float = 4
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    qkv_bias: bool = True
    layerscale_value: float = 1.0
    drop_path_rate: float = 0.0
    use_swiglu_ffn: bool = False
    out_indices: Sequence[int] = ()
    apply_layernorm: bool = True
    reshape_hidden_states: bool = False
    use_mask_token: bool = True
    interpolate_offset: float = 0.0

    def __post_init__(self) -> None:
        me = "backbone_config"
        check_integer(me, "hidden_size", self.hidden_size, 1, limits.MAX_WIDTH)
        check_integer(me, "num_hidden_layers", self.num_hidden_layers, 1, limits.MAX_LAYERS)
        check_integer(me, "num_attention_heads", self.num_attention_heads, 1, limits.MAX_WIDTH)
        check_number(me, "mlp_ratio", self.mlp_ratio, 1e-3, limits.MAX_MLP_RATIO)
        check_integer(me, "image_size", self.image_size, 1, limits.MAX_IMAGE_SIZE)
        check_integer(me, "patch_size", self.patch_size, 1, limits.MAX_PATCH_SIZE)
        check_integer(me, "num_channels", self.num_channels, 1, limits.MAX_CHANNELS)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            check_number(me, name, getattr(self, name), 0.0, 0.999)
        check_number(me, "initializer_range", self.initializer_range, 0.0, 1e3)
        check_number(me, "layer_norm_eps", self.layer_norm_eps, 1e-12, 1.0)
        check_number(me, "layerscale_value", self.layerscale_value, -1e6, 1e6)
        check_number(me, "interpolate_offset", self.interpolate_offset, 0.0, 0.999)
        for name in ("qkv_bias", "use_swiglu_ffn", "apply_layernorm", "reshape_hidden_states", "use_mask_token"):
            check_flag(me, name, getattr(self, name))
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"{me}.hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )
        if self.image_size < self.patch_size:
            raise ConfigError(f"{me}.image_size ({self.image_size}) must be at least patch_size ({self.patch_size})")
        if self.hidden_act != "gelu":
            raise ConfigError(
                f"{me}.hidden_act must be 'gelu' (exact), as in every DINOv2, got {shown(self.hidden_act)}"
            )
        if self.reshape_hidden_states:
            raise ConfigError(f"{me}.reshape_hidden_states must be false: the neck takes tokens, not maps")
        self._check_out_indices(me)

    def _check_out_indices(self, me: str) -> None:
        # Transformers: without indices the last layer is the one tap; negative ones count from the end.
        given = self.out_indices
        indices = (self.num_hidden_layers,) if given in ((), []) else as_tuple(me, "out_indices", given)
        for index in indices:
            check_integer(me, "out_indices", index, -self.num_hidden_layers - 1, self.num_hidden_layers)
        indices = tuple(i % (self.num_hidden_layers + 1) for i in indices)
        if list(indices) != sorted(set(indices)):
            raise ConfigError(f"{me}.out_indices must be in rising order without repeats, got {list(given)}")
        object.__setattr__(self, "out_indices", indices)

    @property
    def grid_size(self) -> int:
        """Side of the square grid that the position embeddings were trained on (37 for 518 / 14)."""
        return self.image_size // self.patch_size

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLP; for SwiGLU two thirds of it, rounded up to a multiple of 8 (DINOv2)."""
        width = int(self.hidden_size * self.mlp_ratio)
        return (int(width * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else width

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Dinov2Config:
        """Read the `backbone_config` of a Transformers `config.json`; fields left out get Transformers' defaults."""
        if isinstance(given, Mapping):
            _refuse_other_family(given, "dinov2")
        values = known_fields(cls, given, also=frozenset({"out_features"}))
        if given.get("out_features") is None:
            return cls(**values)
        stages = tuple(
            _stage_index(name) for name in as_tuple("backbone_config", "out_features", given["out_features"])
        )
        config = cls(**{"out_indices": stages, **values})
        if config.out_indices != stages:
            raise ConfigError(
                f"backbone_config.out_features {shown(given['out_features'])} and out_indices "
                f"{shown(given['out_indices'])} name different layers"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as Transformers writes them."""
        values: dict[str, Any] = {"model_type": "dinov2"}
        values |= {f.name: getattr(self, f.name) for f in fields(self)}
        values["out_indices"] = list(self.out_indices)
        values["out_features"] = ["stem" if i == 0 else f"stage{i}" for i in self.out_indices]
        if not self.interpolate_offset:
            del values["interpolate_offset"]  # Transformers has no such field
        return values


def _stage_index(name: Any) -> int:
    if name == "stem":
        return 0
    if isinstance(name, str) and re.fullmatch("stage[0-9]{1,4}", name):
        return int(name[5:])
    raise ConfigError(f"backbone_config.out_features must be 'stem' or 'stageN', got {shown(name)}")


def _refuse_other_family(given: Mapping[str, Any], expected: str) -> None:
    if isinstance(name := given.get("model_name"), str) and name.lower().startswith("da3"):
        raise ConfigError("this is the config of Depth Anything 3: dajax builds Depth Anything V1 and V2")
    model_type = given.get("model_type", expected)
    if model_type != expected:
        family = _OTHER_FAMILIES.get(model_type) if isinstance(model_type, str) else None
        family = f", that is {family}" if family else ""
        raise ConfigError(
            f"model_type must be {expected!r}, got {shown(model_type)}{family}: dajax builds Depth Anything V1 and V2"
        )


# What Transformers builds when `backbone_config` is left out (V1-Small, but for num_hidden_layers which is 12 anyway).
_DEFAULT_BACKBONE = Dinov2Config(image_size=518, hidden_size=384, num_attention_heads=6, out_indices=(9, 10, 11, 12))


@dataclass(frozen=True)
class DepthAnythingConfig:
    """A Depth Anything model. The defaults describe V1-Small, as in Transformers.

    Attributes:
        backbone_config: the encoder.
        reassemble_factors: by what each tap is enlarged (4, 2), kept (1) or shrunk (0.5).
        depth_estimation_type: "relative" (affine-invariant inverse depth) or "metric" (metres).
        max_depth: metres at the top of the metric head's sigmoid (20 indoor, 80 outdoor). Relative heads are multiplied
            by it too, as in Transformers; it is 1 there.
        preprocessing: the fields of the preprocessor_config.json that came with the weights, or None. It is not a part
            of config.json, and configs that differ in it alone are equal. `dajax.save` writes it again.

    Raises:
        ConfigError: a field has the wrong type, is out of bounds (`dajax.limits`), or contradicts another.
    """

    backbone_config: Dinov2Config = field(default_factory=lambda: _DEFAULT_BACKBONE)
    patch_size: int = 14
    initializer_range: float = 0.02
    reassemble_hidden_size: int = 384
    reassemble_factors: Sequence[int | float] = (4, 2, 1, 0.5)
    neck_hidden_sizes: Sequence[int] = (48, 96, 192, 384)
    fusion_hidden_size: int = 64
    head_in_index: int = -1
    head_hidden_size: int = 32
    depth_estimation_type: str = "relative"
    max_depth: float = 1
    preprocessing: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        me = "config"
        backbone = self.backbone_config
        if not isinstance(backbone, Dinov2Config):
            raise ConfigError(f"{me}.backbone_config must be a Dinov2Config, got {type(backbone).__name__}")
        taps = len(backbone.out_indices)
        for name in ("reassemble_factors", "neck_hidden_sizes"):
            object.__setattr__(self, name, as_tuple(me, name, getattr(self, name), taps))
        check_integer(me, "patch_size", self.patch_size, 1, limits.MAX_PATCH_SIZE)
        check_number(me, "initializer_range", self.initializer_range, 0.0, 1e3)
        check_integer(me, "reassemble_hidden_size", self.reassemble_hidden_size, 1, limits.MAX_WIDTH)
        for factor in self.reassemble_factors:
            check_number(me, "reassemble_factors", factor, 1 / limits.MAX_RESAMPLE_FACTOR, limits.MAX_RESAMPLE_FACTOR)
            if factor > 1 and factor != int(factor):
                raise ConfigError(f"{me}.reassemble_factors above 1 must be whole numbers, got {factor}")
        for width in self.neck_hidden_sizes:
            check_integer(me, "neck_hidden_sizes", width, 1, limits.MAX_CHANNELS)
        check_integer(me, "fusion_hidden_size", self.fusion_hidden_size, 2, limits.MAX_CHANNELS)
        check_integer(me, "head_in_index", self.head_in_index, -taps, taps - 1)
        check_integer(me, "head_hidden_size", self.head_hidden_size, 1, limits.MAX_CHANNELS)
        if self.depth_estimation_type not in ("relative", "metric"):
            raise ConfigError(
                f"{me}.depth_estimation_type must be 'relative' or 'metric', got {shown(self.depth_estimation_type)}"
            )
        check_number(me, "max_depth", self.max_depth, 1e-6, 1e6)
        if self.patch_size != backbone.patch_size:
            raise ConfigError(
                f"{me}.patch_size ({self.patch_size}) must be backbone_config.patch_size ({backbone.patch_size})"
            )
        if self.reassemble_hidden_size != backbone.hidden_size:
            raise ConfigError(
                f"{me}.reassemble_hidden_size ({self.reassemble_hidden_size}) must be backbone_config.hidden_size "
                f"({backbone.hidden_size})"
            )
        if self.num_parameters_bound() > limits.MAX_PARAMETERS:
            raise ConfigError(
                f"{me} describes a model of about {self.num_parameters_bound():.1e} parameters; "
                f"at most {limits.MAX_PARAMETERS:.0e} are built"
            )

    def num_parameters_bound(self) -> int:
        """Return roughly how many parameters the matrices have, for a bound before anything is built."""
        b, f = self.backbone_config, self.fusion_hidden_size
        mlp = (3 if b.use_swiglu_ffn else 2) * b.hidden_size * b.mlp_width
        encoder = b.num_hidden_layers * (4 * b.hidden_size**2 + mlp)
        embeddings = b.hidden_size * (b.grid_size**2 + b.num_channels * b.patch_size**2)
        neck = sum(
            c * b.hidden_size + c * c * int(max(9, r**2)) + 9 * c * f
            for c, r in zip(self.neck_hidden_sizes, self.reassemble_factors, strict=True)
        )
        return encoder + embeddings + neck + len(self.neck_hidden_sizes) * 37 * f * f + 9 * f * self.head_hidden_size

    @property
    def is_metric(self) -> bool:
        """Whether the output is in metres (else affine-invariant inverse depth)."""
        return self.depth_estimation_type == "metric"

    @property
    def style(self) -> str:
        """Whose position embeddings it has: "huggingface" or "official"."""
        return "official" if self.backbone_config.interpolate_offset else "huggingface"

    def with_style(self, style: str) -> DepthAnythingConfig:
        """Return this config with the position-embedding mode of `style`: "huggingface" or "official"."""
        if style not in INTERPOLATE_OFFSET:
            raise ConfigError(f"style must be one of {sorted(INTERPOLATE_OFFSET)}, got {style!r}")
        backbone = replace(self.backbone_config, interpolate_offset=INTERPOLATE_OFFSET[style])
        return replace(self, backbone_config=backbone)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> DepthAnythingConfig:
        """Read a Transformers `config.json`; fields left out (or null) get Transformers' defaults.

        Raises:
            ConfigError: see the class; also for another family of models, which is named.
        """
        if isinstance(given, Mapping):
            _refuse_other_family(given, "depth_anything")
        values = known_fields(cls, given)
        values.pop("preprocessing", None)
        if values.get("backbone_config") is None and given.get("backbone") is not None:
            raise ConfigError(
                f"config.backbone={shown(given['backbone'])} names a backbone without its backbone_config"
            )
        if values.get("depth_estimation_type") == "metric" and values.get("max_depth") is None:
            warnings.warn(
                "a metric model without max_depth: 1 is used, as Transformers does. Released models have 20 m (indoor) "
                "or 80 m (outdoor)",
                UserWarning,
                stacklevel=2,
            )
        if isinstance(values.get("backbone_config"), Mapping):
            values["backbone_config"] = Dinov2Config.from_dict(values["backbone_config"])
        config = cls(**values)
        if config.max_depth != 1 and "depth_estimation_type" not in values:
            warnings.warn(
                f"max_depth is {config.max_depth:g}, but depth_estimation_type is missing: the model is taken as "
                "relative, and its output is multiplied by max_depth, as Transformers does. If it is metric, write "
                '"depth_estimation_type": "metric" into config.json',
                UserWarning,
                stacklevel=2,
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as Transformers writes them into `config.json`."""
        values: dict[str, Any] = {"architectures": ["DepthAnythingForDepthEstimation"], "model_type": "depth_anything"}
        values |= {f.name: getattr(self, f.name) for f in fields(self) if f.name != "preprocessing"}
        values["backbone_config"] = self.backbone_config.to_dict()
        values["reassemble_factors"] = list(self.reassemble_factors)
        values["neck_hidden_sizes"] = list(self.neck_hidden_sizes)
        return values

    @classmethod
    def from_pretrained(cls, name: str | Path, **hub_options: Unpack[HubOptions]) -> DepthAnythingConfig:
        """Read the config of an alias, a Hub id, a directory or a `config.json`.

        Args:
            name: an alias (`dajax.list_models()`; nothing is downloaded for it), a path, or a Hub id.
            hub_options: see `dajax.hub.HubOptions`.

        Raises:
            ConfigError: the config is malformed.
            WeightsError: there is no such file.
        """
        if isinstance(name, str) and name in ALIASES:
            return cls._released(ALIASES[name])
        path = locate(name, "config.json", **hub_options) if is_hub_id(name) else embedded_folder(name) or Path(name)
        return cls.from_file(path / "config.json" if isdir(path) else path)

    @classmethod
    def from_file(cls, path: Path) -> DepthAnythingConfig:
        """Read a `config.json`.

        Raises:
            ConfigError: it is malformed, or describes another family of models.
            WeightsError: there is no such file.
        """
        given = read_json(path)
        try:
            _refuse_other_family(given, "depth_anything")
            if not describes_model(given):
                raise ConfigError(
                    "no config.json of Transformers: it has no model_type. If it belongs to the authors' code, say "
                    "what the weights are with config=…, such as DepthAnythingConfig.v1('base')"
                )
            return cls.from_dict(given)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def _released(cls, row: Checkpoint) -> DepthAnythingConfig:
        if row.kind == "v1 relative":
            return cls.v1(row.size)
        if row.kind == "metric indoor":
            return cls.metric_indoor(row.size)
        if row.kind == "metric outdoor":
            return cls.metric_outdoor(row.size)
        return _sized(row.size, {})

    # Named constructors: the released sizes, V2 relative. Figures: the authors' model_configs, the Hub's
    # config.json.

    @classmethod
    def small(cls, **changes: Any) -> DepthAnythingConfig:
        """ViT-S/14, 24.8 M parameters."""
        return _sized("small", changes)

    @classmethod
    def base(cls, **changes: Any) -> DepthAnythingConfig:
        """ViT-B/14, 97.5 M parameters."""
        return _sized("base", changes)

    @classmethod
    def large(cls, **changes: Any) -> DepthAnythingConfig:
        """ViT-L/14, 335.3 M parameters."""
        return _sized("large", changes)

    @classmethod
    def giant(cls, **changes: Any) -> DepthAnythingConfig:
        """ViT-g/14 with SwiGLU, 1.26 G parameters. Announced by the authors, never released."""
        return _sized("giant", changes)

    @classmethod
    def metric_indoor(cls, size: str = "small") -> DepthAnythingConfig:
        """V2 fine-tuned on Hypersim: metres up to 20. `size`: "small", "base" or "large"."""
        return _sized(size, {"depth_estimation_type": "metric", "max_depth": 20})

    @classmethod
    def metric_outdoor(cls, size: str = "small") -> DepthAnythingConfig:
        """V2 fine-tuned on Virtual KITTI: metres up to 80. `size`: "small", "base" or "large"."""
        return _sized(size, {"depth_estimation_type": "metric", "max_depth": 80})

    @classmethod
    def v1(cls, size: str = "small") -> DepthAnythingConfig:
        """Depth Anything V1: taps are the last four layers. `size`: "small", "base" or "large"."""
        config = _sized(size, {})
        layers = config.backbone_config.num_hidden_layers
        taps = tuple(range(layers - 3, layers + 1))
        return replace(config, backbone_config=replace(config.backbone_config, out_indices=taps))


def describes_model(given: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a config of Transformers.

    All fields have defaults, those of V1 Small, so that any JSON object would do: the authors' own config.json too.
    """
    return "model_type" in given or "backbone_config" in given


# size -> (width, layers, heads, taps, neck widths, fusion width)
_SIZES: dict[str, tuple[int, int, int, tuple[int, ...], tuple[int, ...], int]] = {
    "small": (384, 12, 6, (3, 6, 9, 12), (48, 96, 192, 384), 64),
    "base": (768, 12, 12, (3, 6, 9, 12), (96, 192, 384, 768), 128),
    "large": (1024, 24, 16, (5, 12, 18, 24), (256, 512, 1024, 1024), 256),
    "giant": (1536, 40, 24, (10, 20, 30, 40), (1536, 1536, 1536, 1536), 384),
}


def _sized(size: str, changes: Mapping[str, Any]) -> DepthAnythingConfig:
    if size not in _SIZES:
        raise ConfigError(f"size must be one of {list(_SIZES)}, got {size!r}")
    width, layers, heads, taps, neck, fusion = _SIZES[size]
    backbone = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=518,
        use_swiglu_ffn=size == "giant",
        out_indices=taps,
    )
    values = {
        "backbone_config": backbone,
        "reassemble_hidden_size": width,
        "neck_hidden_sizes": neck,
        "fusion_hidden_size": fusion,
        **changes,
    }
    return DepthAnythingConfig(**values)
