"""The `synthesis` section of a configuration."""

from dataclasses import dataclass, field

from pipeline.data.codec import ImageFormat
from pipeline.data.views import check_crop_area
from pipeline.runtime.acceleration import Compile, Precision
from pipeline.runtime.config import ConfigError
from pipeline.runtime.schedules import Schedule
from pipeline.synthesis.inputs import CanvasConfig
from pipeline.synthesis.terms import TermConfig


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """Optimise at `scale` times the image size for `steps` steps."""

    scale: float = 1.0
    steps: int

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise ConfigError(f"scale: {self.scale} must be in (0, 1]")
        if self.steps < 1:
            raise ConfigError(f"steps: {self.steps} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """How one batch is optimised. The last phase has scale 1; `shift_px` is given there and scaled with the phase.

    With `crop_area`, every step sees a box of each image, its share of the area drawn from that range, scaled up: the
    class has to be in every part of the image. `cuda_graphs` launches the kernels of a compiled step as one.
    """

    phases: tuple[PhaseConfig, ...]
    terms: TermConfig
    canvas: CanvasConfig = field(default_factory=CanvasConfig)
    lr: float = 0.1
    betas: tuple[float, float] = (0.5, 0.9)
    schedule: Schedule = "cosine"
    warmup_fraction: float = 0.05
    shift_px: int = 0
    flip: bool = False
    crop_area: tuple[float, float] = (1.0, 1.0)
    clamp: bool = True
    precision: Precision = "auto"
    compile: Compile = "auto"
    cuda_graphs: bool = False
    log_every: int = 50

    def __post_init__(self) -> None:
        if not self.phases or self.phases[-1].scale != 1:
            raise ConfigError("phases: the last phase must have scale 1, it makes the images that are stored")
        if self.lr <= 0:
            raise ConfigError(f"lr: {self.lr} must be positive")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas: {list(self.betas)} must lie in [0, 1)")
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError(f"warmup_fraction: {self.warmup_fraction} must be in [0, 1)")
        if self.shift_px < 0:
            raise ConfigError(f"shift_px: {self.shift_px} must be at least 0")
        check_crop_area(self.crop_area)
        if self.cuda_graphs and not self.compile:
            raise ConfigError("cuda_graphs: true needs compile: true or auto")
        if self.log_every < 1:
            raise ConfigError(f"log_every: {self.log_every} must be at least 1")

    @property
    def num_steps(self) -> int:
        """Steps of all phases together."""
        return sum(phase.steps for phase in self.phases)


# Cut evenly, a set in batches of at most 2 can hold a batch of 1; from 3 on every batch has at least 2.
MIN_BATCH = 3


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """What to synthesise: `num_images` in all, spread evenly over `rounds` and over `classes` (all by default).

    `batch_size` is the most images in one batch; batches of a round differ by at most one image.
    """

    num_images: int
    batch_size: int
    inversion: InversionConfig
    rounds: int = 1
    classes: tuple[int, ...] | None = None
    image_format: ImageFormat = "png"
    jpeg_quality: int = 95
    images_per_shard: int = 1000

    def __post_init__(self) -> None:
        for name in ("num_images", "batch_size", "rounds", "images_per_shard"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.rounds > self.num_images:
            raise ConfigError(f"rounds: {self.rounds} is more than num_images={self.num_images}; lower it")
        if self.batch_size > self.num_images // self.rounds:
            raise ConfigError(
                f"batch_size: {self.batch_size} is larger than the set of one round, {self.num_images // self.rounds} "
                f"images (num_images={self.num_images}, rounds={self.rounds}); lower it or raise num_images"
            )
        if self.batch_size < MIN_BATCH:
            raise ConfigError(f"batch_size: {self.batch_size} has no statistics to match; use at least {MIN_BATCH}")
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"jpeg_quality: {self.jpeg_quality} must be in 1..100")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise ConfigError(f"classes: {list(self.classes)} names a class twice")
        if self.classes is not None and not self.classes:
            raise ConfigError("classes: an empty list leaves nothing to synthesise; leave the key out for all classes")
