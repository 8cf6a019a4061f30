"""The configuration of a network: its backbone, head and conventions, each with its own options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from deeplab_keras.config.backbones import BACKBONES, BackboneConfig
from deeplab_keras.config.base import Config, option, require_instance, typed
from deeplab_keras.config.conventions import Conventions
from deeplab_keras.config.errors import UserError, unknown_name, unknown_option
from deeplab_keras.config.heads import HEADS, HeadConfig, ImagePoolingConfig

OUTPUT_STRIDES = (8, 16, 32)
# Field that holds the options of a part -> name of the part in messages.
PARTS = {"backbone_config": "backbone", "head_config": "head", "conventions": "conventions"}


@dataclasses.dataclass(frozen=True, init=False)
class ModelConfig(Config):
    """Describes a segmentation network completely: equal configs build equal networks.

    Pass the options of the backbone, the head and the conventions by name, like all other options.
    They are stored by part, in `backbone_config`, `head_config` and `conventions`. An option that
    the chosen backbone or head does not have is refused. All options can also be read from the
    config itself: `config.atrous_rates` is `config.head_config.atrous_rates`.

    Args:
        backbone: A name of `config.backbones.BACKBONES`.
        head: A name of `config.heads.HEADS`.
        conventions: Conventions to start from, a value of `CONVENTIONS`; `None` for the defaults.
        **options: Options of the network and of its parts.

    Raises:
        UserError: An unknown backbone, head or option, an option that the chosen parts do not
            have, or a value that is not allowed.

    Example:
        >>> config = dk.ModelConfig(head="psp", num_classes=11, pool_scales=(1, 2, 4))
        >>> config.head_config.pool_scales
        (1, 2, 4)
        >>> dk.ModelConfig(head="fcn", pool_scales=(1, 2, 4))
        Traceback (most recent call last):
            ...
        deeplab_keras.config.errors.UserError: pool_scales: the head fcn has no such option; ...
    """

    name: str = option(
        "",
        "model of the zoo to start from; the other model flags change it; "
        "`list_models.py` lists the names",
        flag="model",
    )
    backbone: str = option("mobilenet_v2", "backbone network", flag="model_variant")
    head: str = option(
        "deeplab_v3_plus", "segmentation head: fcn, psp, deeplab_v3, deeplab_v3_plus or lraspp"
    )
    num_classes: int = option(21, "number of classes, including the background if it is a class")
    output_stride: int = option(
        8, "ratio of the input size to the size of the backbone's last features: 8, 16 or 32"
    )
    input_channels: int = option(3, "number of channels of the input image")
    auxiliary_head: bool = option(False, "adds an FCN auxiliary head for training")
    auxiliary_feature: str = option("c4", "backbone features that the auxiliary head reads")
    auxiliary_channels: int = option(
        512, "number of channels of the auxiliary head's 3x3 convolution"
    )
    image_pyramid: tuple[float, ...] = option(
        (), "scales of the image that share one network; empty: only the scale 1"
    )
    merge_method: str = option(
        "max", "how the logits of `image_pyramid` are merged", choices=("max", "avg")
    )
    branchwise: bool = option(
        True,
        "computes 3x3 convolutions over concatenated branches branch by branch, and pooled "
        "branches at the pooled size: the same result, faster; False: concatenates, as 8-bit "
        "files do",
    )
    quantization_aware: bool = option(
        False,
        "rounds inputs and kernels as an int8 file does, to fine-tune "
        "`tf_initial_checkpoint='RUN'` for tflite_int8",
    )

    # __init__ makes these from their options.
    backbone_config: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    head_config: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    conventions: Conventions = dataclasses.field(default_factory=Conventions)

    def __init__(
        self,
        backbone: str = "mobilenet_v2",
        head: str = "deeplab_v3_plus",
        *,
        conventions: Conventions | None = None,
        **options: Any,
    ) -> None:
        parts = _part_classes(backbone, head)
        given: dict[str, dict[str, Any]] = {field: {} for field in parts}
        if conventions is not None:
            require_instance(conventions, Conventions, "conventions")
            given["conventions"] = conventions.to_dict()
        own = {name: field.default for name, field in _own_options(type(self)).items()}
        for name, value in options.items():
            owner = next((field for field, part in parts.items() if name in part.options()), None)
            if owner:
                given[owner][name] = value
            elif name in own:
                own[name] = value
            else:
                raise _no_such_option(name, backbone, head)
        for name, value in (own | {"backbone": backbone, "head": head}).items():
            object.__setattr__(self, name, value)
        for field, part in parts.items():
            object.__setattr__(self, field, part(**given[field]))
        self.__post_init__()

    def __getattr__(self, name: str) -> Any:
        for field in PARTS:
            part = self.__dict__.get(field)
            if part is not None and name in part.options():
                return getattr(part, name)
        raise AttributeError(f"{type(self).__name__} has no option {name!r}")

    def get(self, name: str, default: Any) -> Any:
        """Returns the value of an option, or `default` if the network's parts do not have it."""
        return getattr(self, name, default)

    def validate(self) -> None:
        self._require(
            self.num_classes >= 2,
            "num_classes",
            "must be at least 2",
            hint="for one class against the rest, count the background as a class",
        )
        self._require(self.output_stride in OUTPUT_STRIDES, "output_stride", "must be 8, 16 or 32")
        self._require(self.num_classes <= 65536, "num_classes", "must be at most 65536")
        self._require(self.input_channels >= 1, "input_channels", "must be at least 1")
        self._require(self.auxiliary_channels >= 1, "auxiliary_channels", "must be at least 1")
        self._require("/" not in self.name, "name", "must not contain /")
        self._require(
            all(0 < scale <= 16 for scale in self.image_pyramid),
            "image_pyramid",
            "must be scales above 0 and at most 16",
        )
        self._require(
            not (self.quantization_aware and self.image_pyramid),
            "image_pyramid",
            "cannot be combined with `quantization_aware`",
        )
        self._require(
            self.conventions.normalization != "imagenet" or self.input_channels == 3,
            "input_channels",
            "must be 3 with `normalization='imagenet'`",
            hint="set `normalization='unit_range'` for another number of channels",
        )

    @property
    def image_pooling_window(self) -> tuple[int, ...]:
        """The window of image pooling in feature pixels; empty: the whole map or no pooling."""
        head = self.head_config
        if not isinstance(head, ImagePoolingConfig):
            return ()
        sides = tuple(-(-side // self.output_stride) for side in head.image_pooling_crop_size)
        return sides or head.image_pooling_size

    def replace(self, **changes: Any) -> ModelConfig:
        """Returns a copy with some options changed.

        If the backbone or head changes, the options that the old and the new part share keep their
        values. The name becomes empty, because the result is another model.

        Raises:
            UserError: The new config does not have an option, or a value is not allowed.
        """
        backbone, head = (changes.get(key, getattr(self, key)) for key in ("backbone", "head"))
        known = set(_own_options(type(self))).union(
            *(part.options() for part in _part_classes(backbone, head).values())
        )
        if "conventions" in changes:
            known -= set(Conventions.options())
        values = {name: value for name, value in self.to_dict().items() if name in known}
        if (backbone, head) != (self.backbone, self.head):
            values["name"] = ""
        return type(self)(**(values | changes))

    def to_dict(self) -> dict[str, Any]:
        """Returns the values of all options by name, including those of the parts."""
        values = {name: getattr(self, name) for name in _own_options(type(self))}
        for field in PARTS:
            values |= getattr(self, field).to_dict()
        return values

    @classmethod
    def from_saved(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Returns the config that a checkpoint holds.

        Checkpoints of older versions list the options of all heads. The options of other heads
        have no effect on the network and are dropped.

        Raises:
            UserError: An option is unknown, or a value is not allowed.
        """
        backbone, head = (
            values.get("backbone", "mobilenet_v2"),
            values.get("head", "deeplab_v3_plus"),
        )
        parts = _part_classes(backbone, head).values()
        known = set(_own_options(cls)).union(*(part.options() for part in parts))
        return cls(**{k: v for k, v in values.items() if k in known or k not in cls.options()})

    @classmethod
    def options(cls) -> dict[str, dataclasses.Field[Any]]:
        """Returns the fields of all options of all parts, by name."""
        found = _own_options(cls)
        for part in _every_part():
            found = found | part.options()
        return found

    @classmethod
    def types(cls) -> dict[str, Any]:
        """Returns the types of all options by name."""
        found = dict(super().types())
        for part in _every_part():
            found |= part.types()
        return found


def _own_options(cls: type[ModelConfig]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls) if field.name not in PARTS}


def _every_part() -> tuple[type[Config], ...]:
    return (*BACKBONES.values(), *HEADS.values(), Conventions)


def _part_classes(backbone: str, head: str) -> dict[str, type[Config]]:
    backbone, head = typed(backbone, str, "backbone"), typed(head, str, "head")
    if backbone not in BACKBONES:
        raise unknown_option("backbone", backbone, BACKBONES)
    if head not in HEADS:
        raise unknown_option("head", head, HEADS)
    return {
        "backbone_config": BACKBONES[backbone],
        "head_config": HEADS[head],
        "conventions": Conventions,
    }


def _no_such_option(name: str, backbone: str, head: str) -> UserError:
    """Returns the error for an option that another part has, or that is unknown."""
    for kind, chosen, table in (("backbone", backbone, BACKBONES), ("head", head, HEADS)):
        owners = [other for other, part in table.items() if name in part.options()]
        if owners:
            has = "has" if len(owners) == 1 else "have"
            return UserError(
                f"`{name}`: the {kind} {chosen} has no such option; {', '.join(owners)} {has} it",
                field=name,
            )
    return unknown_name("ModelConfig field", name, ModelConfig.options())
