"""The `synthesis` section of a configuration."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch

from pipeline.data.codec import ImageFormat
from pipeline.data.views import check_crop_area, check_view_scale, scaled_size
from pipeline.runtime.acceleration import Compile, CudaGraphs, Precision, check_cuda_graphs, resolve_acceleration
from pipeline.runtime.config import ConfigError
from pipeline.runtime.schedules import Schedule
from pipeline.synthesis.basis import BasisName
from pipeline.synthesis.inputs import InitNoiseConfig
from pipeline.synthesis.terms import TermConfig

# A plan of so many images takes about a gigabyte.
MAX_IMAGES = 10_000_000


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One resolution of the inversion.

    Attributes:
        scale: Image size in this phase as a fraction of the full size, in (0, 1]; the last phase has scale 1.
        steps: Optimization steps of this phase, at least 1.
    """

    scale: float = 1.0
    steps: int

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise ConfigError(f"scale: {self.scale} must be in (0, 1]")
        if self.steps < 1:
            raise ConfigError(f"steps: {self.steps} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """How one batch of images is optimized with Adam (DeepInversion, Yin et al., 2020, arXiv 1912.08795).

    Attributes:
        phases: Resolutions from coarse to fine; the images of one phase, scaled up, start the next.
        terms: Weights of the loss terms.
        init_noise: The noise that the optimization starts from.
        basis: What Adam changes. `pixels`: the inputs x, where pixels = 0.45 + 0.225 x. `fourier`: their amplitudes of
            spatial frequencies and decorrelated colors, in units of the standard deviations of `init_noise`, so that
            low frequencies change the most (Olah et al., 2017, doi 10.23915/distill.00007).
        lr: Peak learning rate of Adam, positive, for the variables of `basis`.
        betas: Adam's decay rates of the first and the second moment, each in [0, 1).
        schedule: Learning rate after the warm-up of each phase: `cosine` falls to 0, `constant` stays at `lr`.
        warmup_fraction: Fraction of each phase's steps, in [0, 1), in which the learning rate rises linearly to `lr`.
        jitter_px: Largest random translation, in pixels at full size, of the whole batch in each step. It wraps
            around, and is scaled with the phase.
        flip: Whether the whole batch is mirrored horizontally in half of the steps.
        crop_area: Range, within (0, 1], from which the area of a random box is drawn in every step for each image, as
            a fraction of the image's area. The box is scaled up to the full size, so that the class is recognizable in
            every part of the image. [1.0, 1.0]: no crop.
        view_scale: Side of the views that the networks see, as a fraction in (0, 1] of the images' side. Below 1, the
            crops show a larger image at the cost of a smaller one.
        clamp: Whether the images are clamped to valid pixel values after every step.
        precision: Arithmetic of the networks. `auto`: bfloat16 where the hardware multiplies it, else float32.
        compile: Whether the step is compiled (torch.compile). `auto`: where compiling works and saves time.
        cuda_graphs: Whether the kernels of a compiled step are launched as one CUDA graph. `auto`: on CUDA.
        log_every: Steps between two log lines; losses are checked for NaN and infinity at the same steps.
    """

    phases: tuple[PhaseConfig, ...]
    terms: TermConfig
    init_noise: InitNoiseConfig = field(default_factory=InitNoiseConfig)
    basis: BasisName = "pixels"
    lr: float = 0.1
    betas: tuple[float, float] = (0.5, 0.9)
    schedule: Schedule = "cosine"
    warmup_fraction: float = 0.05
    jitter_px: int = 0
    flip: bool = False
    crop_area: tuple[float, float] = (1.0, 1.0)
    view_scale: float = 1.0
    clamp: bool = True
    precision: Precision = "auto"
    compile: Compile = "auto"
    cuda_graphs: CudaGraphs = "auto"
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
        if self.jitter_px < 0:
            raise ConfigError(f"jitter_px: {self.jitter_px} must be at least 0")
        check_crop_area(self.crop_area)
        check_view_scale(self.view_scale)
        check_cuda_graphs(self)
        if self.log_every < 1:
            raise ConfigError(f"log_every: {self.log_every} must be at least 1")

    def view_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """The (height, width) of the views of each phase."""
        return [scaled_size(self.view_scale, scaled_size(phase.scale, image_size)) for phase in self.phases]

    @property
    def num_steps(self) -> int:
        """Steps of all phases together."""
        return sum(phase.steps for phase in self.phases)


def resolve_inversion(config: InversionConfig, num_pixels: int, device: torch.device) -> InversionConfig:
    """`config` without `auto`, for `num_pixels` pixels of all images together; see `resolve_acceleration`."""
    return resolve_acceleration(config, device, num_pixels * config.num_steps, "synthesis.inversion")


# With batches of at most 2, an even split can leave a batch of 1, which has no variance; from 3 on, every batch has 2.
MIN_BATCH_SIZE = 3


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """How many images are synthesized, and how they are stored.

    Attributes:
        num_images: Number of synthetic images, spread evenly over `rounds` and classes. In a run of one round it can be
            raised later: the images that exist stay as they are, and only the others are made.
        batch_size: Largest number of images optimized together, at least 3. BatchNorm statistics are matched over such
            a batch. Batches of a round differ by at most one image.
        inversion: How one batch is optimized.
        rounds: Number of rounds; each synthesizes its share of the images, then distills the student further. From the
            second round on, the `competition` term can use the student of the round before.
        image_format: File format of the stored images; png and webp are lossless.
        jpeg_quality: Quality of jpeg files, 1 to 100; other formats ignore it.
        images_per_shard: Largest number of images of one class in one tar file, at least 1.
        grown_from: The values that `num_images` had before, in rising order, if the set has grown. A stage reads them
            from the set that exists; they matter to make the same set again elsewhere.
    """

    num_images: int
    batch_size: int
    inversion: InversionConfig
    rounds: int = 1
    image_format: ImageFormat = "png"
    jpeg_quality: int = 95
    images_per_shard: int = 1000
    grown_from: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("num_images", "batch_size", "rounds", "images_per_shard"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.num_images > MAX_IMAGES:
            raise ConfigError(f"num_images: {self.num_images:,} is more than {MAX_IMAGES:,}, which a run can plan")
        if self.rounds > self.num_images:
            raise ConfigError(f"rounds: {self.rounds} is more than num_images={self.num_images}; lower it")
        if self.batch_size > self.num_images // self.rounds:
            raise ConfigError(
                f"batch_size: {self.batch_size} is larger than the set of one round, {self.num_images // self.rounds} "
                f"images (num_images={self.num_images}, rounds={self.rounds}); lower it or raise num_images"
            )
        if self.batch_size < MIN_BATCH_SIZE:
            raise ConfigError(
                f"batch_size: {self.batch_size} has no statistics to match; use at least {MIN_BATCH_SIZE}"
            )
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"jpeg_quality: {self.jpeg_quality} must be in 1..100")
        if self.grown_from:
            self._check_growth()

    def _check_growth(self) -> None:
        if self.rounds > 1:
            raise ConfigError(
                f"grown_from: {list(self.grown_from)} needs rounds: 1; the students of several rounds have learned "
                "from the sets as they were"
            )
        if self.grown_from[0] < self.batch_size:
            raise ConfigError(f"grown_from: {self.grown_from[0]} images are fewer than batch_size={self.batch_size}")
        # Half a batch is what the smallest batch of a set that has not grown can have.
        least = max(MIN_BATCH_SIZE, -(-self.batch_size // 2))
        for before, after in pairwise((*self.grown_from, self.num_images)):
            if after - before < least:
                raise ConfigError(
                    f"num_images: {after} adds {after - before} images to a set of {before}; their batch needs at "
                    f"least {least}, half of batch_size={self.batch_size}: raise it to {before + least} or more"
                )

    @property
    def growth(self) -> tuple["SynthesisConfig", ...]:
        """The set at each of its sizes, from the first that was made to this one."""
        sizes = (*self.grown_from, self.num_images)
        return tuple(replace(self, num_images=size, grown_from=sizes[:i]) for i, size in enumerate(sizes))

    @property
    def num_added(self) -> int:
        """The images beyond the size before; all images of a set that has not grown."""
        return self.num_images - (self.grown_from[-1] if self.grown_from else 0)
